"""The graph of an export reads a file as `prepare` does, or says why it does not: for odd, large and hostile files."""

import io
import resource
import struct
import zlib
from typing import Any

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import tensorflow as tf

from export.convert.image_batch import load_batch
from export.files.statuses import STATUS_IN_WORDS, STATUSES
from trainer.data.decode.geometry import Geometry
from trainer.data.decode.image_file import UnreadableImage, make_plain, open_picture
from trainer.data.decode.limits import MAX_IMAGE_PIXELS
from trainer.data.decode.preprocess import resize_image

pytestmark = pytest.mark.slow

HEIGHT, WIDTH, SIZE = 22, 37, 16
TURN = PIL.Image.Transpose
# What must be done to the picture so that the viewer, who obeys the orientation, sees it again.
UNDO = {
    2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE,
    6: TURN.ROTATE_90, 7: TURN.TRANSVERSE, 8: TURN.ROTATE_270,
}  # fmt: skip


def picture() -> PIL.Image.Image:
    """Smooth, coloured, and different from each of its rotations and reflections."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    channels = [255 * x / WIDTH, 255 * y / HEIGHT, 120 + 100 * np.sin(x / 9 + y / 5)]
    return PIL.Image.fromarray(np.stack(channels, -1).astype(np.uint8))


RGB = picture()
PALETTE = RGB.quantize(32)
# Every value under every alpha.
ALL_ALPHAS = PIL.Image.fromarray(np.dstack([*[np.tile(np.arange(256, dtype=np.uint8), (256, 1))] * 3,
                                            np.tile(np.arange(256, dtype=np.uint8)[:, None], (1, 256))]))  # fmt: skip


def encode(image: PIL.Image.Image, container: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, container, **options)
    return buffer.getvalue()


def exif(orientation: int) -> PIL.Image.Exif:
    entries = PIL.Image.Exif()
    entries[0x010F] = "a camera"
    entries[0x0112] = orientation
    return entries


def big_endian_exif(orientation: int) -> bytes:
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def with_text(kind: str, text: str, *, compressed: bool = False) -> PIL.PngImagePlugin.PngInfo:
    info = PIL.PngImagePlugin.PngInfo()
    info.add_itxt(kind, text, zip=compressed)
    return info


def turned(orientation: int) -> dict[str, bytes]:
    image = RGB.transpose(UNDO[orientation])
    return {
        "JPEG": encode(image, "JPEG", quality=95, exif=exif(orientation)),
        "JPEG, big-endian": encode(image, "JPEG", quality=95, exif=big_endian_exif(orientation)),
        "JPEG, XMP": encode(image, "JPEG", quality=95, xmp=xmp(orientation)),
        "PNG": encode(image, "PNG", exif=exif(orientation)),
        "PNG, XMP": encode(image, "PNG", pnginfo=with_text("XML:com.adobe.xmp", xmp(orientation).decode())),
        "WebP": encode(image, "WEBP", lossless=True, exif=exif(orientation)),
        "WebP, XMP": encode(image, "WEBP", lossless=True, xmp=xmp(orientation)),
    }


READ = {
    "JPEG": encode(RGB, "JPEG", quality=95),
    "JPEG, progressive, upright by EXIF": encode(RGB, "JPEG", quality=95, progressive=True, exif=exif(1)),
    "JPEG, grey": encode(RGB.convert("L"), "JPEG", quality=95),
    "JPEG, several pictures": encode(RGB, "MPO", quality=95, save_all=True, append_images=[PALETTE.convert("RGB")]),
    "PNG": encode(RGB, "PNG"),
    "PNG, palette": encode(PALETTE, "PNG"),
    "PNG, 1 bit": encode(RGB.convert("1"), "PNG"),
    "PNG, alpha": encode(ALL_ALPHAS, "PNG"),
    "PNG, grey and alpha": encode(ALL_ALPHAS.convert("LA"), "PNG"),
    "PNG, palette with a transparent colour": encode(PALETTE, "PNG", transparency=3),
    "PNG, a transparent colour": encode(RGB, "PNG", transparency=RGB.getpixel((5, 5))),
    "GIF": encode(PALETTE, "GIF"),
    "GIF, animated": encode(PALETTE, "GIF", save_all=True, append_images=[RGB.rotate(180).quantize(32)], duration=50),
    "BMP": encode(RGB, "BMP"),
    "BMP, grey": encode(RGB.convert("L"), "BMP"),
    "WebP": encode(RGB, "WEBP", quality=95),
    "WebP, lossless": encode(RGB, "WEBP", lossless=True),
    **{f"{name}, turned {o}": content for o in UNDO for name, content in turned(o).items()},
}

REFUSED = {
    "PNG, 16 bits": (encode(PIL.Image.fromarray(np.asarray(RGB.convert("L")) * np.uint16(257)), "PNG"), "sixteen_bit"),
    "PNG, animated": (encode(RGB, "PNG", save_all=True, append_images=[RGB.rotate(180)]), "animated"),
    "PNG, turned in compressed XMP": (
        encode(RGB, "PNG", pnginfo=with_text("XML:com.adobe.xmp", xmp(6).decode(), compressed=True)), "rotated",
    ),
    "JPEG, CMYK": (encode(RGB.convert("CMYK"), "JPEG"), "cmyk"),
    "GIF, transparent": (encode(PALETTE, "GIF", transparency=3), "transparent"),
    "WebP, animated": (encode(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(180)]), "animated"),
    "WebP, transparent": (encode(ALL_ALPHAS, "WEBP", lossless=True), "transparent"),
    "BMP, palette": (encode(PALETTE, "BMP"), "unsupported"),
    "TIFF": (encode(RGB, "TIFF"), "not_an_image"),
}  # fmt: skip


@pytest.fixture(scope="module", params=["crop", "squash"])
def reading(request: pytest.FixtureRequest) -> Any:
    """The graph as it is exported, and the geometry that it was made with."""
    geometry = Geometry(image_size_px=SIZE, resize=request.param)
    load = tf.function(
        lambda encoded: load_batch(encoded, geometry), input_signature=[tf.TensorSpec([None], tf.string)]
    )

    def read(files: list[bytes]) -> tuple[Any, list[str]]:
        pixels, status = load(tf.constant(files))
        return pixels.numpy().astype(int), [value.decode() for value in status.numpy()]

    return read, geometry


def test_what_the_graph_reads_is_what_prepare_makes_of_it(reading: Any) -> None:
    read, geometry = reading
    pixels, status = read(list(READ.values()))
    assert dict(zip(READ, status, strict=True)) == dict.fromkeys(READ, "ok")
    for (name, content), found in zip(READ.items(), pixels, strict=True):
        with open_picture(content) as seen:
            assert not isinstance(seen, UnreadableImage)
            expected = resize_image(tf.constant(seen.pixels), geometry).numpy()
        # Decoders of JPEG and WebP round in their own ways; everything else is the same to the bit.
        allowed = 8 if name.startswith("JPEG") else 1 if name.startswith("WebP") else 0
        assert np.abs(found - expected).max() <= allowed, name


def test_what_the_graph_would_read_otherwise_is_refused_and_answered_once_it_is_plain(reading: Any) -> None:
    read, geometry = reading
    pixels, status = read([content for content, _ in REFUSED.values()])
    assert dict(zip(REFUSED, status, strict=True)) == {name: why for name, (_, why) in REFUSED.items()}
    plain = [make_plain(content) for content, _ in REFUSED.values()]
    again, status = read([image.encoded for image in plain if not isinstance(image, UnreadableImage)])
    assert status == ["ok"] * len(REFUSED)
    for content, found in zip(REFUSED.values(), again, strict=True):
        with open_picture(content[0]) as seen:
            assert not isinstance(seen, UnreadableImage)
            assert np.abs(found - resize_image(tf.constant(seen.pixels), geometry).numpy()).max() <= 8
    assert not pixels[[why != "ok" for _, why in REFUSED.values()]].any()


def png(width: int, height: int, *, rows: int, depth: int = 1, colour: int = 0) -> bytes:
    """A PNG of one colour that says it is of that size, with so many rows in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = bytes(1 + width * depth * {0: 1, 2: 3, 6: 4}[colour] // 8)
    deflate = zlib.compressobj(9)
    data = b"".join(deflate.compress(row) for _ in range(rows)) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_a_small_file_of_many_pixels_is_refused_before_it_takes_memory(reading: Any) -> None:
    read, _ = reading
    bomb = png(20_000, 20_000, rows=20_000)
    assert len(bomb) < 65_536 and MAX_IMAGE_PIXELS < 20_000**2
    read([encode(RGB, "PNG")])
    before = peak_mib()
    # Longer sides than any format has: their product is no reason to let it in.
    _, status = read([bomb, png(2**32 - 8, 2**32 - 8, rows=0)])
    assert status == ["too_large", "too_large"]
    assert peak_mib() - before < 100


def test_large_pictures_of_one_batch_are_decoded_one_after_the_other(reading: Any) -> None:
    read, _ = reading
    large = png(8_000, 5_000, rows=5_000)  # 120 MB of pixels each
    read([large])
    before = peak_mib()
    _, status = read([large] * 8 + [b"", encode(RGB, "PNG")])
    assert status == ["ok"] * 8 + ["not_an_image", "ok"]
    assert peak_mib() - before < 300


def test_a_transparent_picture_that_is_too_large_to_be_put_on_white_says_so(reading: Any) -> None:
    read, _ = reading
    assert read([png(4_097, 4_097, rows=0, depth=8, colour=6)])[1] == ["transparent"]


@pytest.mark.parametrize("name", [name for name in READ if "several" not in name and "turned" not in name])
def test_a_cut_file_is_no_answer(reading: Any, name: str) -> None:
    read, _ = reading
    content = READ[name]
    cuts = [content[:end] for end in (4, 11, 20, 30, len(content) // 3, len(content) // 2)]
    pixels, status = read([content, *cuts])
    assert status[0] == "ok" and "ok" not in status[1:]
    assert not pixels[1:].any()


def test_frames_behind_the_first_of_a_gif_cost_nothing(reading: Any) -> None:
    read, _ = reading
    frame = encode(PIL.Image.new("P", (2_000, 2_000)), "GIF")
    start = frame.index(b"\x2c\0\0\0\0")
    many = frame[:-1] + frame[start:-1] * 200 + b";"  # 2.4 GB of pixels in all
    before = peak_mib()
    assert read([many])[1] == ["ok"]
    assert peak_mib() - before < 100


def test_every_status_has_words() -> None:
    assert ("ok", *STATUS_IN_WORDS) == STATUSES
