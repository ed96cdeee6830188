"""Images with 16 bits per sample: how many of the bits are used, and the conversion to 8 bits.

Cameras, microscopes and scanners with 10, 12 or 14 bits write 16-bit files, and most do not scale the values: a 16-bit
viewer shows them nearly black. The number of bits in use is determined in this order:

1. The file says so: TIFF's BitsPerSample of 12, MaxSampleValue, SMaxSampleValue or WhiteLevel; PNG's sBIT, whose
   samples should be scaled up to all 16 bits (ISO/IEC 15948, 11.3.2.7) but often are not, as the values show.
2. Otherwise the caller says so, from the range of the whole source or an option.

The image is made of the upper 8 of the bits in use; with all 16 in use that is TensorFlow's result too.
"""

import dataclasses
import io
import sys
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

FULL_BITS: Final = 16
# Bit depths of sensors, and 8 for files without more.
_USUAL_BITS: Final = (8, 10, 12, 14, FULL_BITS)
# Maps Pillow's raw modes that keep the upper byte of a sample to those that keep the lower one.
_LOWER_BYTES: Final = {
    **{f"{mode};16B": f"{mode};16L" for mode in ("RGB", "RGBA", "RGBX", "CMYK")},
    **{f"{mode};16L": f"{mode};16B" for mode in ("RGB", "RGBA", "RGBX", "CMYK")},
    **{f"{mode};16N": f"{mode};16{'B' if sys.byteorder == 'little' else 'L'}" for mode in ("RGB", "RGBA", "RGBX")},
}
_GREY_AND_ALPHA: Final = "LA;16B"
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE, _SMAX_SAMPLE_VALUE, _WHITE_LEVEL = 258, 281, 341, 50717
_ORIENTATION: Final = ExifTags.Base.Orientation


def usual_bits(highest: int) -> int:
    """Return the smallest usual number of bits that holds the value `highest`."""
    return next(bits for bits in _USUAL_BITS if highest < 2**bits)


def fewer_bits(bits: int) -> int:
    """Return the next smaller usual number of bits, or 0."""
    return max((usual for usual in _USUAL_BITS if usual < bits), default=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepSamples:
    """The samples of one image.

    values: [height, width, channels], uint16.
    has_alpha: true if the last channel is alpha.
    declared_bits: how many bits the file says are used, unless its values contradict that; otherwise None.
    is_scaled_up: true if the declared bits were scaled up to all 16, as PNG requires.
    """

    values: npt.NDArray[np.uint16]
    mode: str
    has_alpha: bool
    declared_bits: int | None
    is_scaled_up: bool
    orientation: int
    format: str | None

    @property
    def highest(self) -> int:
        """The highest value of a colour channel."""
        colours = self.values[..., :-1] if self.has_alpha else self.values
        return int(colours.max())

    def to_image(self, bits: int) -> Image.Image:
        """Convert samples that use `bits` to an 8-bit image; higher values become 255."""
        narrowed = _narrow(self.values, bits)
        if self.has_alpha:
            alpha = self.values[..., -1]
            narrowed[..., -1] = _narrow(alpha, bits if alpha.max() < 2**bits else FULL_BITS)
        image = Image.frombytes(self.mode, (narrowed.shape[1], narrowed.shape[0]), narrowed.tobytes())
        image.format = self.format
        if self.orientation != 1:
            image.getexif()[_ORIENTATION] = self.orientation
        return image


def _narrow(values: npt.NDArray[np.uint16], bits: int) -> npt.NDArray[np.uint8]:
    narrowed: npt.NDArray[np.uint8] = (np.minimum(values, 2**bits - 1) >> (bits - 8)).astype(np.uint8)
    return narrowed


def read_deep_samples(encoded: bytes, image: Image.Image) -> DeepSamples | None:
    """Read the samples of `image`, opened from `encoded` and not yet loaded; return None if they have 8 bits.

    Pillow may raise any exception on a damaged file.
    """
    # Pillow scales the samples of a PGM to 16 bits, whatever its maximum, with mode I.
    is_pgm = image.format == "PPM" and image.mode == "I"
    if image.mode.startswith("I;16") or is_pgm:
        image.load()
        values = np.asarray(image).astype(np.uint16)[..., np.newaxis]
        mode, has_alpha = "L", False
    else:
        raw_mode = _raw_mode_of(image)
        if raw_mode == _GREY_AND_ALPHA:  # read as four bytes: both halves of the grey, both of the alpha
            _set_raw_mode(image, raw_mode, "RGBA")
            values = np.asarray(image).view(">u2").astype(np.uint16)
            mode, has_alpha = "LA", True
        elif raw_mode in _LOWER_BYTES:
            with Image.open(io.BytesIO(encoded), formats=[image.format or ""]) as lower:
                _set_raw_mode(lower, raw_mode, _LOWER_BYTES[raw_mode])
                values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(lower)
            mode, has_alpha = image.mode, image.mode == "RGBA"
        else:
            return None
    declared, is_scaled_up = (FULL_BITS, False) if is_pgm else _declared_bits(encoded, image, values)
    values, mode, has_alpha = _with_transparent_colour(image, values, mode, has_alpha=has_alpha)
    return DeepSamples(
        values=values,
        mode=mode,
        has_alpha=has_alpha,
        declared_bits=declared,
        is_scaled_up=is_scaled_up,
        orientation=image.getexif().get(_ORIENTATION, 1),
        format=image.format,
    )


def _raw_mode_of(image: Image.Image) -> str | None:
    """Return the raw mode that all tiles of an opened image share, or None."""
    tiles: list[Any] = getattr(image, "tile", [])
    modes = {tile[3] if isinstance(tile[3], str) else next(iter(tile[3] or ()), None) for tile in tiles}
    mode = modes.pop() if len(modes) == 1 else None
    return mode if isinstance(mode, str) else None


def _set_raw_mode(image: Image.Image, before: str, after: str) -> None:
    image.tile = [  # type: ignore[attr-defined]
        tile._replace(args=after if tile.args == before else (after, *tile.args[1:]))
        for tile in image.tile  # type: ignore[attr-defined]
    ]


def _with_transparent_colour(
    image: Image.Image, values: npt.NDArray[np.uint16], mode: str, *, has_alpha: bool
) -> tuple[npt.NDArray[np.uint16], str, bool]:
    """Turn the transparent colour of a PNG (tRNS, a 16-bit value) into an alpha channel."""
    colour = image.info.get("transparency")
    if has_alpha or colour is None or isinstance(colour, bytes) or mode not in ("L", "RGB"):
        return values, mode, has_alpha
    opaque = (values != np.asarray(colour, np.uint16)).any(axis=-1, keepdims=True)
    alpha = np.where(opaque, np.uint16(0xFFFF), np.uint16(0))
    return np.concatenate([values, alpha], axis=-1), f"{mode}A", True


def _declared_bits(encoded: bytes, image: Image.Image, values: npt.NDArray[np.uint16]) -> tuple[int | None, bool]:
    """Return the number of bits the file declares, or None, and whether the samples were scaled up from it."""
    highest = int(values.max())
    if image.format == "PNG":
        significant = _significant_bits(encoded)
        if significant is None or not 8 <= significant <= FULL_BITS:
            return None, False
        if significant == FULL_BITS:
            return FULL_BITS, False
        if highest >= 2**significant:
            return FULL_BITS, True
        # In scaled-up samples the lower bits repeat the upper ones or are zero, and the upper ones are zero here.
        is_unscaled = bool((values & (2 ** (FULL_BITS - significant) - 1)).any())
        return (significant if is_unscaled else None), False
    if image.format == "JPEG2000":  # Pillow scales it to all bits
        return FULL_BITS, False
    tags: Any = getattr(image, "tag_v2", {})
    found = [_first_number(tags.get(tag)) for tag in (_MAX_SAMPLE_VALUE, _SMAX_SAMPLE_VALUE, _WHITE_LEVEL)]
    bits_of_sample = _first_number(tags.get(_BITS_PER_SAMPLE))
    declared = [bits_of_sample] if bits_of_sample is not None and bits_of_sample < FULL_BITS else []
    declared += [max(8, value.bit_length()) for value in found if value is not None and 0 < value < 2**FULL_BITS]
    return next((bits for bits in declared if highest < 2**bits), None), False


def _first_number(value: Any) -> int | None:
    """Return the first number of a TIFF tag, which has a value per channel."""
    first = value[0] if isinstance(value, tuple) and value else value
    return int(first) if isinstance(first, int | float) and first == first // 1 else None


def _significant_bits(encoded: bytes) -> int | None:
    """Return the largest number in the sBIT chunk of a PNG, which precedes its image data; None if it has none."""
    position = 8
    while position + 8 <= len(encoded):
        length, kind = int.from_bytes(encoded[position : position + 4]), encoded[position + 4 : position + 8]
        if kind == b"IDAT":
            return None
        if kind == b"sBIT":
            content = encoded[position + 8 : position + 8 + min(length, 4)]
            return max(content[: 1 if length < 3 else 3], default=None)
        position += 12 + length
    return None
