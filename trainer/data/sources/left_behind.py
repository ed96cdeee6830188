"""Files and folders among images that are not images: system files, side-cars, annotations and documents.

They are recognized by name here, and otherwise by content when they are read (`preparation.file_kinds`). They are
neither classes nor bad files: they are skipped and counted by kind.
"""

import collections
import dataclasses
import functools
import os
from typing import Final


def _words(text: str, separator: str | None = None) -> frozenset[str]:
    return frozenset(text.split(separator))


IMAGE_SUFFIXES: Final = _words(
    ".jpg .jpeg .jpe .jfif .png .apng .gif .bmp .dib .webp .tif .tiff .ppm .pgm .pbm .pnm .avif .avifs .jp2 .j2k .jpx "
    ".mpo .heic .heif .jxl .ico .svg .tga .psd .exr .hdr"
)
_FOLDERS: Final = _words(
    "__macosx/lost+found/@eadir/#recycle/@recycle/#snapshot/@recently-snapshot/@tmp/$recycle.bin/recycler/found.000/"
    "system volume information/network trash folder/temporary items/__pycache__",
    "/",
)
_FILES: Final = _words(
    "thumbs.db/ehthumbs.db/ehthumbs_vista.db/desktop.ini/picasa.ini/zbthumbnail.info/pspbrwse.jbf/icon\r", "/"
)
# Side-cars of cameras and raw converters; .thm is the JPEG thumbnail of a video.
_SIDE_CARS: Final = _words(".xmp .aae .thm .pp3 .dop .on1 .cos .nksc .arp .ctg")
_ANNOTATIONS: Final = _words(
    ".xml .json .jsonl .txt .csv .tsv .npy .npz .mat .yaml .yml .pkl .pickle .h5 .hdf5 .parquet .toml .names .lst"
)
_PAPERS: Final = _words(".md .rst .html .htm .pdf .doc .docx .rtf .odt .bib .log .py .ipynb .sh")
_SUFFIXES: Final = _SIDE_CARS | _ANNOTATIONS | _PAPERS
_PAPERS_BY_NAME: Final = _words(
    "readme license licence copying copyright notice authors contributors changelog citation makefile"
)
_MAX_LISTED = 1_000


@dataclasses.dataclass
class PassedOver:
    """The files of a source that are neither candidates nor bad files.

    num_ignored: files known not to be images, by kind.
    num_beside: other files, outside the class folders.
    beside: the first of their names.
    """

    num_ignored: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    num_beside: int = 0
    beside: list[str] = dataclasses.field(default_factory=list)

    def add_beside(self, name: str) -> None:
        self.num_beside += 1
        if len(self.beside) < _MAX_LISTED:
            self.beside.append(name)


def kind_of_file(name: str) -> str | None:
    """Return the kind of a file that is not an image, for example "Thumbs.db" or "*.xml"; None if it may be one."""
    if name[:1] == ".":
        return _kind_of_hidden(name)
    stem, suffix = os.path.splitext(name)
    suffix = suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return None
    if suffix in _SUFFIXES:
        return f"*{suffix}"
    lower = name.lower()
    if lower in _FILES:
        return name.strip()
    return name if lower in _PAPERS_BY_NAME or (stem.lower() in _PAPERS_BY_NAME) else None


def kind_of_system_file(name: str) -> str | None:
    """Return the kind of a file made by the system, not a person, for listings that name each file."""
    return kind_of_file(name) if name[:1] == "." or name.lower() in _FILES else None


def kind_of_folder(name: str) -> str | None:
    """Return the kind of a folder without images, for example "@eaDir"; None if it may contain some."""
    if name[:1] == ".":
        return name
    return name if name.lower() in _FOLDERS else None


def kind_of_path(path: str) -> str | None:
    """Return the kind of a path by its outermost part that has one; a folder ends with a slash."""
    folder, _, name = path.rpartition("/")
    return _kind_of_folders(folder) or (kind_of_file(name) if name else None)


@functools.lru_cache(maxsize=4096)
def _kind_of_folders(path: str) -> str | None:
    return next(filter(None, map(kind_of_folder, path.split("/"))), None) if path else None


def _kind_of_hidden(name: str) -> str:
    if name.startswith("._"):
        return "._* of a Mac"
    return name if name in (".DS_Store", ".directory", ".nomedia", ".picasa.ini", ".localized") else "hidden"
