"""Pictures of 10, 12 or 14 bits in files of 16: as bright as they were taken, and a word on how that is known."""

import contextlib
import io
import json
import pathlib
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from typer.testing import CliRunner

from trainer.cli.app import app
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.split_reader import iterate_examples
from trainer.data.decode.preprocess import decode_image
from trainer.data.preparation.images.image_check import ReadableImage, check_image
from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset

MAX_SAMPLE_VALUE = 281


def gradient(bits: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """[16, 24, channels] of all values that `bits` can hold, from 0 to the highest; lower bits are in use."""
    values = np.random.default_rng(seed).integers(0, 2**bits, [16, 24, channels], np.uint16)
    values[0, 0], values[0, 1] = 0, 2**bits - 1
    return values


def png(values: np.ndarray, significant: int | None = None) -> bytes:
    encoded: bytes = tf.io.encode_png(values).numpy()
    if significant is None:
        return encoded
    content = bytes([significant] * values.shape[-1])
    chunk = struct.pack(">I", len(content)) + b"sBIT" + content + struct.pack(">I", zlib.crc32(b"sBIT" + content))
    return encoded[:33] + chunk + encoded[33:]  # after the header


def tiff(values: np.ndarray, tags: dict[int, int] | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values[..., 0]).save(buffer, "TIFF", tiffinfo=tags or {}, **options)
    return buffer.getvalue()


def tiff_of_colour(values: np.ndarray, order: str) -> bytes:
    """Without compression, in one strip; "<" or ">" for the order of bytes. Pillow writes no 16 bits of colour."""
    height, width, channels = values.shape
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 0),
        (259, 3, 1),
        (262, 3, 2),
        (273, 4, 0),
        (277, 3, channels),
    ]
    entries += [(278, 4, height), (279, 4, values.size * 2)]
    bits_at = 8 + 2 + 12 * len(entries) + 4
    head = (
        (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8) + struct.pack(f"{order}H", len(entries))
    )
    for tag, kind, value in entries:
        value = {258: bits_at, 273: bits_at + 2 * channels}.get(tag, value)
        is_short = kind == 3 and tag != 258
        packed = struct.pack(f"{order}HH", value, 0) if is_short else struct.pack(f"{order}I", value)
        head += struct.pack(f"{order}HHI", tag, kind, channels if tag == 258 else 1) + packed
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    return head + bytes(4) + bits + values.astype(f"{order}u2").tobytes()


def picture(encoded: bytes, sample_bits: int | None = None) -> np.ndarray:
    image = check_image(encoded, sample_bits=sample_bits)
    assert isinstance(image, ReadableImage), image
    return as_training_sees(image.encoded)


def as_training_sees(encoded: bytes) -> np.ndarray:
    pixels: np.ndarray = decode_image(tf.constant(encoded)).numpy()
    return pixels


def upper(values: np.ndarray, bits: int) -> np.ndarray:
    return np.broadcast_to(values[..., :3] >> (bits - 8), (*values.shape[:2], 3))


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_a_png_says_of_its_bits_is_used(bits: int, channels: int) -> None:
    values = gradient(bits, channels)
    assert np.array_equal(picture(png(values, significant=bits)), upper(values, bits))


def test_samples_that_a_png_has_scaled_up_as_the_standard_wants_stay_as_they_are() -> None:
    values = gradient(12) << 4
    encoded = png(values, significant=12)
    assert picture(encoded).max() == 255
    checked = check_image(encoded, sample_bits=12)
    assert isinstance(checked, ReadableImage)
    assert checked.encoded == encoded  # also where others of the source are not


def test_what_a_tiff_says_of_its_highest_value_is_used_unless_its_values_contradict() -> None:
    values = gradient(12)
    assert np.array_equal(picture(tiff(values, {MAX_SAMPLE_VALUE: 4095})), upper(values, 12))
    assert np.array_equal(picture(tiff(values, {MAX_SAMPLE_VALUE: 255})), upper(values, 16))


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["grey png", "colour png", "tiff", "tiff, lzw", "colour tiff, <", "colour tiff, >"])
def test_a_number_of_bits_from_elsewhere_is_used_where_the_file_says_nothing(kind: str, bits: int) -> None:
    values = gradient(bits, 3 if kind.startswith("colour") else 1)
    if kind.startswith("colour tiff"):
        encoded = tiff_of_colour(values, kind[-1])
    elif kind.startswith("tiff"):
        encoded = tiff(values, compression="tiff_lzw" if "lzw" in kind else None)
    else:
        encoded = png(values)
    checked = check_image(encoded)
    assert isinstance(checked, ReadableImage)
    assert checked.highest_sample == 2**bits - 1
    assert np.array_equal(picture(encoded, sample_bits=bits), upper(values, bits))


def test_alpha_of_16_bits_keeps_its_own_range_and_a_transparent_colour_is_compared_in_full() -> None:
    values = np.concatenate([gradient(12, 3), np.full([16, 24, 1], 0xFFFF, np.uint16)], -1)
    assert np.array_equal(picture(png(values), sample_bits=12), upper(values, 12))
    grey = np.concatenate([gradient(12), np.full([16, 24, 1], 0xFFFF, np.uint16)], -1)
    assert np.array_equal(picture(png(grey), sample_bits=12), upper(grey[..., :1], 12))
    values[4:, :, 3] = 0
    assert (picture(png(values), sample_bits=12)[4:] == 255).all()
    # A value of 16 bits is transparent, and another with the same upper byte is not.
    key, other = np.full([4, 4, 1], 0x1234, np.uint16), np.full([4, 4, 1], 0x12FF, np.uint16)
    encoded = png(np.concatenate([key, other]))
    chunk = struct.pack(">I", 2) + b"tRNS\x12\x34" + struct.pack(">I", zlib.crc32(b"tRNS\x12\x34"))
    seen = picture(encoded[:33] + chunk + encoded[33:])
    assert (seen[:4] == 255).all()
    assert (seen[4:] == 0x12).all()


def test_a_pgm_says_its_range_and_is_turned_like_any_other() -> None:
    values = gradient(12)
    pgm = b"P5\n24 16\n4095\n" + values.astype(">u2").tobytes()
    assert np.abs(picture(pgm).astype(int) - upper(values, 12)).max() <= 1
    turned = tiff(values, {274: 6, MAX_SAMPLE_VALUE: 4095})
    assert np.array_equal(picture(turned), np.rot90(upper(values, 12), -1))


@pytest.fixture(scope="module")
def microscope(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two classes of twelve pictures each of 12 bits in PNG files of 16, one of them dark."""
    folder = tmp_path_factory.mktemp("bits") / "microscope"
    for label, name in enumerate(("cell", "debris")):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            values = gradient(12, seed=12 * label + i) // (8 if i == 0 else 1)
            (folder / name / f"{i}.png").write_bytes(png(values))
    return folder


def stored(out: pathlib.Path) -> dict[str, np.ndarray]:
    manifest = Manifest.load(out)
    examples = (example for split in manifest.splits for example in iterate_examples(out, manifest, split))
    return {e.filename: as_training_sees(e.encoded) for e in examples}


def test_the_range_of_the_whole_source_is_used_said_and_kept(microscope: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "dataset"
    result = CliRunner().invoke(app, ["prepare", str(microscope), "--out", str(out)])
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "24 pictures of 16 bits do not say how many of them are used: read as 12 bits, since the highest" in text
    assert "value is 4,095, though 2 would fit into fewer" in text
    assert "24 12 bits of 16 used" in text
    found = Manifest.load(out)
    assert found.sample_bits == 12
    for name, pixels in stored(out).items():
        values = np.asarray(Image.open(microscope / name))[..., np.newaxis]
        assert np.array_equal(pixels, upper(values, 12)), name  # the dark ones stay dark


def test_the_option_decides_and_what_is_above_it_is_white_and_said(
    microscope: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    manifest = prepare_dataset(str(microscope), tmp_path / "full", options=PrepareOptions(sample_bits=16))
    assert manifest.deep_samples is not None
    assert (manifest.sample_bits, manifest.deep_samples.is_given, manifest.num_reencoded) == (16, True, {})
    assert max(pixels.max() for pixels in stored(tmp_path / "full").values()) == 15
    arguments = ["prepare", str(microscope), "--out", str(tmp_path / "ten"), "--sample-bits", "10", "--json"]
    answer = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert answer["num_reencoded"] == {"10 bits of 16 used": 2, "10 bits of 16 used, higher values cut off": 22}
    assert answer["deep_samples"]["bits"] == 10


class Stop(Exception):
    """Ends a preparation from its progress."""


class StopsAtTheSecondLook:
    """Raises when the first pictures are read with the bits that were found."""

    @contextlib.contextmanager
    def __call__(self, description: str, total: int) -> Iterator["StopsAtTheSecondLook"]:
        self._active = description.startswith("reading")
        yield self

    def advance(self, amount: int = 1) -> None:
        if self._active and amount:
            raise Stop


def test_stopped_between_the_two_looks_it_ends_with_the_same_bytes(
    microscope: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    outs = [tmp_path / "stopped/dataset", tmp_path / "whole/dataset"]
    with pytest.raises(Stop):
        prepare_dataset(str(microscope), outs[0], progress=StopsAtTheSecondLook())
    assert not outs[0].exists()
    for out in outs:
        prepare_dataset(str(microscope), out)
    contents = [{path.name: path.read_bytes() for path in out.iterdir()} for out in outs]
    assert contents[0] == contents[1]


def test_full_16_bits_keep_their_bytes(tmp_path: pathlib.Path) -> None:
    for label, name in enumerate("ab"):
        (tmp_path / "source" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "source" / name / f"{i}.png").write_bytes(png(gradient(16, seed=4 * label + i)))
    manifest = prepare_dataset(str(tmp_path / "source"), tmp_path / "out")
    assert manifest.num_reencoded == {}
    assert manifest.sample_bits == 16
