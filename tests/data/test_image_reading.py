"""What training sees is what people see, for every odd file that turns up in a folder of images."""

import io
import struct
import warnings
import zlib
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, PngImagePlugin

from trainer.data.decode.preprocess import decode_image
from trainer.data.preparation.images.image_check import (
    ReadableImage,
    UnreadableImage,
    check_image,
    check_images,
    compare_decoders,
)
from trainer.data.preparation.images.image_header import find_plain_image

HEIGHT, WIDTH = 23, 37
ORIENTATION = 0x0112


def _picture() -> Image.Image:
    """Smooth (JPEG keeps it well), coloured, and different from each of its rotations and reflections."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    red, green, blue = 255 * x / WIDTH, 255 * y / HEIGHT, 120 + 100 * np.sin(x / 9 + y / 5)
    return Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8))


RGB = _picture()
GREY = RGB.convert("L")
PALETTE = RGB.quantize(32)
ALPHA = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
RGBA = Image.fromarray(np.dstack([np.asarray(RGB), ALPHA]))
OTHER = RGB.transpose(Image.Transpose.ROTATE_180)


def encode(image: Image.Image, container: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, container, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    entries = Image.Exif()
    entries[ORIENTATION] = orientation
    return entries


def bmp(bits: int, compression: int, data: bytes, *, width: int, height: int, palette: bytes = b"") -> bytes:
    start = 14 + 40 + len(palette)
    file_header = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
    sizes = (40, width, height, 1, bits, compression, len(data), 0, 0, len(palette) // 4, 0)
    return file_header + struct.pack("<IiiHHIIiiII", *sizes) + palette + data


def as_rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def on_white(rgba: Image.Image) -> np.ndarray:
    values = np.asarray(rgba.convert("RGBA")).astype(float)
    alpha = values[..., 3:] / 255
    return values[..., :3] * alpha + 255 * (1 - alpha)


GREY_16BIT = np.asarray(GREY).astype(np.uint16) * 256 + 129
RGB_16BIT = np.asarray(RGB).astype(np.uint16) * 256 + 200

KEPT: dict[str, tuple[bytes, np.ndarray]] = {
    "jpeg": (encode(RGB, "JPEG", quality=95), as_rgb(RGB)),
    "jpeg, chroma subsampled": (encode(RGB, "JPEG", quality=95, subsampling=2), as_rgb(RGB)),
    "jpeg, progressive": (encode(RGB, "JPEG", quality=95, progressive=True), as_rgb(RGB)),
    "jpeg, grey": (encode(GREY, "JPEG", quality=95), as_rgb(GREY)),
    "jpeg, not YCbCr but RGB": (encode(RGB, "JPEG", quality=95, keep_rgb=True), as_rgb(RGB)),
    "jpeg, upright by EXIF": (encode(RGB, "JPEG", quality=95, exif=exif(1)), as_rgb(RGB)),
    "jpeg, bytes after its end": (encode(RGB, "JPEG", quality=95) + b"garbage", as_rgb(RGB)),
    "mpo": (encode(RGB, "MPO", quality=95, save_all=True, append_images=[OTHER]), as_rgb(RGB)),
    "png": (encode(RGB, "PNG"), as_rgb(RGB)),
    "png, one pixel": (encode(RGB.resize((1, 1)), "PNG"), as_rgb(RGB.resize((1, 1)))),
    "png, grey": (encode(GREY, "PNG"), as_rgb(GREY)),
    "png, black and white": (encode(RGB.convert("1"), "PNG"), as_rgb(RGB.convert("1"))),
    "png, palette": (encode(PALETTE, "PNG"), as_rgb(PALETTE)),
    "png, opaque alpha": (encode(RGB.convert("RGBA"), "PNG"), as_rgb(RGB)),
    "png, opaque palette alpha": (encode(PALETTE, "PNG", transparency=b"\xff" * 32), as_rgb(PALETTE)),
    "png, 16-bit grey": (encode(Image.fromarray(GREY_16BIT), "PNG"), as_rgb(GREY)),
    "png, 16-bit colour": (tf.io.encode_png(RGB_16BIT).numpy(), as_rgb(RGB)),
    "png, animated": (encode(RGB, "PNG", save_all=True, append_images=[OTHER]), as_rgb(RGB)),
    "png, bytes after its end": (encode(RGB, "PNG") + b"garbage", as_rgb(RGB)),
    "gif": (encode(PALETTE, "GIF"), as_rgb(PALETTE)),
    "gif, animated": (
        encode(PALETTE, "GIF", save_all=True, append_images=[OTHER.quantize(32)], duration=50),
        as_rgb(PALETTE),
    ),
    "bmp": (encode(RGB, "BMP"), as_rgb(RGB)),
    "bmp, grey": (encode(GREY, "BMP"), as_rgb(GREY)),
    "webp": (encode(RGB, "WEBP", quality=95), as_rgb(RGB)),
    "webp, lossless": (encode(RGB, "WEBP", lossless=True), as_rgb(RGB)),
}

REENCODED: dict[str, tuple[bytes, str, np.ndarray]] = {
    "jpeg, CMYK": (encode(RGB.convert("CMYK"), "JPEG", quality=95), "CMYK to RGB", as_rgb(RGB)),
    "png, alpha": (encode(RGBA, "PNG"), "transparency put on white", on_white(RGBA)),
    "png, grey and alpha": (
        encode(RGBA.convert("LA"), "PNG"),
        "transparency put on white",
        on_white(RGBA.convert("LA")),
    ),
    "png, 16-bit alpha": (
        tf.io.encode_png(np.dstack([RGB_16BIT, ALPHA.astype(np.uint16) * 257])).numpy(),
        "transparency put on white",
        on_white(RGBA),
    ),
    "png, palette with a transparent colour": (
        encode(PALETTE, "PNG", transparency=3),
        "transparency put on white",
        np.where(np.asarray(PALETTE)[..., np.newaxis] == 3, 255, as_rgb(PALETTE)),
    ),
    "gif with a transparent colour": (
        encode(PALETTE, "GIF", transparency=3),
        "transparency put on white",
        np.where(np.asarray(PALETTE)[..., np.newaxis] == 3, 255, as_rgb(PALETTE)),
    ),
    "webp, alpha": (encode(RGBA, "WEBP", lossless=True, exact=True), "transparency put on white", on_white(RGBA)),
    "webp, animated": (
        encode(RGB, "WEBP", save_all=True, append_images=[OTHER], lossless=True),
        "first frame of an animated WebP",
        as_rgb(RGB),
    ),
    "bmp, palette": (encode(PALETTE, "BMP"), "BMP that TensorFlow reads otherwise", as_rgb(PALETTE)),
    "bmp, black and white": (
        encode(RGB.convert("1"), "BMP"),
        "BMP that TensorFlow does not read",
        as_rgb(RGB.convert("1")),
    ),
    "bmp, 15-bit": (
        bmp(16, 0, struct.pack("<4H", 0x7C00, 0x03E0, 0x001F, 0x7FFF), width=4, height=1),
        "BMP that TensorFlow does not read",
        np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]]),
    ),
    "bmp, run-length": (
        bmp(8, 1, bytes([4, 1, 0, 0, 4, 0, 0, 1]), width=4, height=2, palette=bytes([10, 20, 30, 0, 40, 50, 60, 0])),
        "BMP that TensorFlow reads otherwise",
        np.array([[[30, 20, 10]] * 4, [[60, 50, 40]] * 4]),
    ),
    "tiff": (encode(RGB, "TIFF"), "converted from TIFF", as_rgb(RGB)),
    "tiff, 16-bit": (encode(Image.fromarray(GREY_16BIT), "TIFF"), "converted from TIFF", as_rgb(GREY)),
    "ppm": (encode(RGB, "PPM"), "converted from PPM", as_rgb(RGB)),
    "jpeg 2000": (encode(RGB, "JPEG2000"), "converted from JPEG2000", as_rgb(RGB)),
    "png, turned by EXIF": (
        encode(RGB.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif(6)),
        "rotated upright",
        as_rgb(RGB),
    ),
}

JPEG, PNG = KEPT["jpeg"][0], KEPT["png"][0]
QUANTISATION = JPEG.index(b"\xff\xdb") + 5
REFUSED: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "empty"),
    "text": (b"hello world", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "a jpeg without its end": (JPEG[:-2], "truncated"),
    "a jpeg's first bytes": (JPEG[:6], "truncated"),
    "a jpeg whose damage each decoder conceals in its way": (
        JPEG[:QUANTISATION] + b"\xff" + JPEG[QUANTISATION + 1 :],
        "corrupt",
    ),
    "half a png": (PNG[: len(PNG) // 2], "truncated"),
    "a png without its end": (PNG[:-12], "corrupt"),
    "a png with a wrong checksum": (PNG[: len(PNG) // 2] + b"\0\xff\0" + PNG[len(PNG) // 2 + 3 :], "corrupt"),
    "half a gif": (KEPT["gif"][0][: len(KEPT["gif"][0]) * 3 // 4], "truncated"),
    "half a bmp": (KEPT["bmp"][0][:-100], "truncated"),
    "half a webp": (KEPT["webp"][0][: len(KEPT["webp"][0]) // 2], "corrupt"),
    "float pixels": (encode(Image.fromarray(np.ones([4, 4], np.float32)), "TIFF"), "unsupported"),
    "a side that libpng refuses": (
        bmp(1, 0, bytes(250_004), width=2_000_001, height=1, palette=bytes(8)),
        "unsupported",
    ),
}


def decoded(image: ReadableImage | UnreadableImage) -> np.ndarray:
    """What training sees: the graph that the input pipeline runs."""
    assert isinstance(image, ReadableImage), image
    pixels = decode_image(tf.constant(image.encoded)).numpy()
    assert pixels.shape == (image.height, image.width, 3)
    return pixels


@pytest.mark.parametrize("name", KEPT)
def test_sound_files_keep_their_bytes_and_training_sees_the_picture(name: str) -> None:
    content, picture = KEPT[name]
    image = check_image(content)
    assert isinstance(image, ReadableImage), image
    assert image.change is None
    assert image.encoded == content
    assert image.format == {"mpo": "jpeg"}.get(name, name.partition(",")[0])
    difference = np.abs(decoded(image).astype(int) - picture)
    assert difference.mean() <= (3 if image.format in ("jpeg", "webp") else 0)


@pytest.mark.parametrize("name", REENCODED)
def test_what_training_would_read_wrong_is_reencoded_and_says_why(name: str) -> None:
    content, change, picture = REENCODED[name]
    image = check_image(content)
    assert isinstance(image, ReadableImage), image
    assert image.change == change
    assert image.format == ("jpeg" if name.startswith("jpeg,") else "png")
    difference = np.abs(decoded(image).astype(int) - picture)
    assert difference.mean() <= (3 if name.startswith("jpeg") else 0.6)  # 0.6: alpha is rounded


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_jpeg_turned_by_exif_is_stored_upright(orientation: int) -> None:
    # The stored picture is RGB put through the inverse of what the EXIF tag asks the viewer to do.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = check_image(encode(RGB.transpose(undo), "JPEG", quality=95, exif=exif(orientation)))
    assert isinstance(image, ReadableImage)
    assert image.change == "rotated upright"
    assert image.format == "jpeg"
    assert Image.open(io.BytesIO(image.encoded)).getexif().get(ORIENTATION, 1) == 1
    assert np.abs(decoded(image).astype(int) - as_rgb(RGB)).mean() <= 3


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_files_are_named_with_a_reason(name: str) -> None:
    content, kind = REFUSED[name]
    image = check_image(content)
    assert isinstance(image, UnreadableImage), image
    assert image.reason.partition(":")[0] == kind


@pytest.mark.parametrize("side", [20_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
    image = check_image(bomb)
    assert isinstance(image, UnreadableImage)
    assert image.reason.startswith("too large")


SAMPLES = [content for content, *_ in (*KEPT.values(), *REENCODED.values())]


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
    sample=st.sampled_from(SAMPLES),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    keep=st.floats(0, 1),
)
def test_whatever_is_accepted_decodes_in_training(sample: bytes, edits: list[tuple[float, int]], keep: float) -> None:
    content = bytearray(sample)
    for place, value in edits:
        content[int(place * len(content))] = value
    # Most often whole: a cut file is seldom accepted.
    damaged = bytes(content if keep > 0.3 else content[: int(keep / 0.3 * len(content))])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on sloppy files
        image = check_image(damaged)
    if isinstance(image, ReadableImage):
        assert decoded(image).dtype == np.uint8


# What the header proves, so that one decoder is enough.


@pytest.mark.parametrize(
    ("name", "is_plain"),
    [
        ("jpeg", True),
        ("jpeg, chroma subsampled", True),
        ("jpeg, progressive", True),
        ("jpeg, grey", True),
        ("jpeg, upright by EXIF", True),
        ("png", True),
        ("png, grey", True),
        ("jpeg, not YCbCr but RGB", False),
        ("jpeg, bytes after its end", False),
        ("mpo", False),
        ("png, palette", False),
        ("png, opaque alpha", False),
        ("png, 16-bit grey", False),
        ("png, animated", False),
        ("gif", False),
        ("bmp", False),
        ("webp", False),
    ],
)
def test_the_usual_files_are_known_by_their_header_and_the_others_compared(name: str, is_plain: bool) -> None:
    content, picture = KEPT[name]
    plain = find_plain_image(content)
    assert (plain is not None) == is_plain
    if plain is not None:
        assert (plain.format, plain.height, plain.width) == (name.partition(",")[0], *picture.shape[:2])


@pytest.mark.parametrize("name", [*REENCODED, *REFUSED])
def test_no_file_that_must_be_changed_or_refused_passes_by_its_header(name: str) -> None:
    content = REENCODED[name][0] if name in REENCODED else REFUSED[name][0]
    assert check_image(content) == compare_decoders(content) or isinstance(check_image(content), UnreadableImage)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("container", ["PNG", "JPEG"])
def test_a_turned_file_is_not_plain_whether_by_exif_or_xmp(container: str, orientation: int) -> None:
    assert find_plain_image(encode(RGB, container, exif=exif(orientation))) is None
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    if container == "JPEG":
        content = encode(RGB, "JPEG", xmp=xmp)
    else:
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        content = encode(RGB, "PNG", pnginfo=text)
    assert find_plain_image(content) is None
    checked = check_image(content)
    assert isinstance(checked, ReadableImage)
    assert checked.change == "rotated upright"


PLAIN = [content for content, _ in KEPT.values() if find_plain_image(content)]
PLAIN_PNG = [content for content in PLAIN if content.startswith(b"\x89PNG")]


@hypothesis.settings(max_examples=400, deadline=None)
@hypothesis.given(
    sample=st.sampled_from(PLAIN_PNG),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3),
    head=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=2),
    with_checksums=st.booleans(),
)
def test_what_a_header_lets_through_as_png_both_decoders_see_alike(
    sample: bytes, edits: list[tuple[float, int]], head: list[tuple[int, int]], with_checksums: bool
) -> None:
    content = bytearray(sample)
    for place, value in [*((int(place * len(content)), value) for place, value in edits), *head]:
        content[place] = value
    damaged = png_with_checksums(bytes(content)) if with_checksums else bytes(content)
    checked = check_image(damaged)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        compared = compare_decoders(damaged)
    if isinstance(checked, ReadableImage):
        assert checked == compared


def png_with_checksums(content: bytes) -> bytes:
    """Puts the right checksum behind every chunk that is whole, so that damage inside is not seen by it."""
    fixed, position = bytearray(content), 8
    while position + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, position)
        end = position + 8 + length
        if end + 4 > len(content):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[position + 4 : end]))
        position = end + 4
    return bytes(fixed)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
    sample=st.sampled_from([content for content in PLAIN if content.startswith(b"\xff\xd8")]),
    edits=st.lists(st.tuples(st.integers(2, 700), st.integers(0, 255)), max_size=3),
)
def test_what_a_header_lets_through_as_jpeg_is_upright_of_its_size_and_decodes(
    sample: bytes, edits: list[tuple[int, int]]
) -> None:
    content = bytearray(sample)
    for place, value in edits:
        content[place % len(content)] = value
    damaged = bytes(content)
    plain = find_plain_image(damaged)
    checked = check_image(damaged)
    if plain is None or not isinstance(checked, ReadableImage) or checked.change is not None:
        return
    assert decoded(checked).shape == (plain.height, plain.width, 3)
    with Image.open(io.BytesIO(damaged)) as image:
        assert (image.format, image.size) == ("JPEG", (plain.width, plain.height))
        assert image.mode in ("L", "RGB")
        assert image.getexif().get(ORIENTATION, 1) not in range(2, 9)


def test_many_images_at_once_get_each_its_own_answer() -> None:
    contents = [content for content, *_ in (*KEPT.values(), *REENCODED.values(), *REFUSED.values())] * 4
    assert check_images(contents) == [check_image(content) for content in contents]
    assert check_images([]) == []


def test_a_longer_side_than_asked_for_is_made_smaller() -> None:
    for content in (KEPT["jpeg"][0], KEPT["png"][0], REENCODED["tiff"][0]):
        image = check_image(content, max_side_px=20)
        assert isinstance(image, ReadableImage)
        assert (image.change, image.height, image.width) == ("made smaller", 12, 20)
        assert decoded(image).shape == (12, 20, 3)
        same = check_image(content, max_side_px=WIDTH)
        assert isinstance(same, ReadableImage)
        assert same.change != "made smaller"


@pytest.mark.parametrize("content", [b"", b"RIFF", b"hello", KEPT["jpeg"][0][:50], REENCODED["webp, animated"][0]])
def test_decoding_what_was_not_prepared_is_an_error_and_no_crash(content: bytes) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_image(tf.constant(content))
