"""Identify files that are not images by their first bytes, and say how to get an image from them.

Sources: the specifications and magic numbers of each format; ISO base media files by their brand (ISO/IEC 14496-12).
"""

import os
from typing import Final, NamedTuple

from trainer.data.sources.left_behind import IMAGE_SUFFIXES


class FileKind(NamedTuple):
    """A kind of file: `name` has an article, `is_text_or_data` marks what people keep beside images."""

    name: str
    fix: str = ""
    is_text_or_data: bool = False

    def __str__(self) -> str:
        return f"{self.name}{f'; {self.fix}' if self.fix else ''}"


_CONVERT: Final = "convert it to JPEG or PNG"
_APPLE_DOUBLE: Final = FileKind("an AppleDouble file of a Mac")
_THUMBNAILS: Final = FileKind("a database of thumbnails, or another OLE file of Windows")
_MAGIC: Final = (
    (b"version https://git-lfs", FileKind("a Git LFS pointer", "fetch the files with: git lfs pull")),
    (b"%PDF", FileKind("a PDF", is_text_or_data=True)),
    (b"\x93NUMPY", FileKind("a NumPy array", is_text_or_data=True)),
    (b"\x89HDF\r\n", FileKind("an HDF5 file", is_text_or_data=True)),
    (b"MATLAB", FileKind("a MATLAB file", is_text_or_data=True)),
    (b"SQLite format 3\0", FileKind("a SQLite database", is_text_or_data=True)),
    (b"\x80\x02", FileKind("a Python pickle", is_text_or_data=True)),
    (b"\x80\x03", FileKind("a Python pickle", is_text_or_data=True)),
    (b"\x80\x04", FileKind("a Python pickle", is_text_or_data=True)),
    (b"\x80\x05", FileKind("a Python pickle", is_text_or_data=True)),
    (b"PAR1", FileKind("a Parquet table", is_text_or_data=True)),
    (b"\0\5\x16\7", _APPLE_DOUBLE),
    (b"\0\5\x16\0", _APPLE_DOUBLE),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _THUMBNAILS),
    (b"PK\3\4", FileKind("a zip archive or an office document", "unpack it")),
    (b"\x1f\x8b", FileKind("a gzip file", "unpack it")),
    (b"BZh", FileKind("a bzip2 file", "unpack it")),
    (b"\xfd7zXZ\0", FileKind("an xz file", "unpack it")),
    (b"7z\xbc\xaf\x27\x1c", FileKind("a 7-Zip archive", "unpack it")),
    (b"Rar!\x1a\7", FileKind("a RAR archive", "unpack it")),
    (b"8BPS", FileKind("a Photoshop document", _CONVERT)),
    (b"\xff\x0a", FileKind("a JPEG XL image", _CONVERT)),
    (b"\0\0\0\x0cJXL ", FileKind("a JPEG XL image", _CONVERT)),
    (b"%!PS", FileKind("a PostScript file", _CONVERT)),
    (b"\xc5\xd0\xd3\xc6", FileKind("a PostScript file", _CONVERT)),
    (b"\x76\x2f\x31\x01", FileKind("an OpenEXR image", _CONVERT)),
    (b"#?RADIANCE", FileKind("a Radiance HDR image", _CONVERT)),
    (b"\0\0\1\0", FileKind("a Windows icon", _CONVERT)),
    (b"\xd7\xcd\xc6\x9a", FileKind("a Windows metafile", _CONVERT)),
    (b"SIMPLE  =", FileKind("a FITS image", _CONVERT)),
    (b"FUJIFILMCCD-RAW", FileKind("a raw photograph (RAF)", _CONVERT)),
    (b"IIU\0", FileKind("a raw photograph (RW2)", _CONVERT)),
    (b"IIRO", FileKind("a raw photograph (ORF)", _CONVERT)),
    (b"FOVb", FileKind("a raw photograph (X3F)", _CONVERT)),
    (b"II*\0", FileKind("a TIFF or raw photograph whose kind of pixels cannot be read", _CONVERT)),
    (b"MM\0*", FileKind("a TIFF or raw photograph whose kind of pixels cannot be read", _CONVERT)),
    (b"II+\0", FileKind("a BigTIFF that cannot be read", _CONVERT)),
    (b"MM\0+", FileKind("a BigTIFF that cannot be read", _CONVERT)),
    (b"\x1aE\xdf\xa3", FileKind("a Matroska or WebM video")),
    (b"RIFF", FileKind("a RIFF file, such as a video or a sound")),
    (b"\x7fELF", FileKind("a program")),
    (b"MZ", FileKind("a program of Windows")),
    (b"L\0\0\0\1\x14\2\0", FileKind("a shortcut of Windows")),
)
_HEIF_BRANDS: Final = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_HEIC: Final = FileKind(
    "an HEIC photograph", "convert it to JPEG, or have the phone send it in its most compatible form"
)
_NUM_BYTES: Final = 1024


def find_kind(content: bytes) -> FileKind | None:
    """Return the kind of a file that no decoder could open, or None if its bytes are not recognized."""
    head = content[:_NUM_BYTES]
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in _HEIF_BRANDS:
            return _HEIC
        if brand in (b"avif", b"avis"):
            return FileKind("an AVIF image that cannot be read", _CONVERT)
        return (
            FileKind("a raw photograph (CR3)", _CONVERT) if brand == b"crx " else FileKind("a video (MP4 or QuickTime)")
        )
    if head[128:132] == b"DICM":
        return FileKind("a DICOM image", _CONVERT)
    if not head.strip(b"\0"):
        return FileKind("nothing but zero bytes", "copy it again")
    return _find_text(head)


def find_left_behind(filename: str, content: bytes) -> str | None:
    """Return the kind of a system file or document among images; None for a file that should have been an image.

    A web page or Git LFS pointer with the suffix of an image, or without one, should have been an image.
    """
    kind = find_kind(content)
    if kind in (_APPLE_DOUBLE, _THUMBNAILS):
        return kind.name
    suffix = os.path.splitext(filename)[1].lower()
    if kind is None or not kind.is_text_or_data or suffix in IMAGE_SUFFIXES or suffix == "":
        return None
    return kind.name


def _find_text(head: bytes) -> FileKind | None:
    try:
        text = head.decode("utf-8-sig").lstrip()
    except UnicodeDecodeError as e:
        if e.start < len(head) - 4:  # otherwise `head` ends within a character
            return None
        text = head[: e.start].decode("utf-8-sig").lstrip()
    if any(not character.isprintable() and not character.isspace() for character in text):
        return None
    start = text[:512].lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<body")) or "<html" in start:
        return FileKind("an HTML page", "download the image itself", is_text_or_data=True)
    if "<svg" in start:
        return FileKind("an SVG drawing", _CONVERT)
    if start.startswith("<"):
        return FileKind("an XML file", is_text_or_data=True)
    if start.startswith(("{", "[")):
        return FileKind("a JSON file", is_text_or_data=True)
    return FileKind("a text", is_text_or_data=True)
