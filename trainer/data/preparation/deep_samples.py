"""Pictures of 16 bits a sample: how many of the bits are used, and the picture of 8 bits that people mean.

Cameras, microscopes and scanners of 10, 12 or 14 bits write files of 16, and most write the values as they are: a
viewer of 16 bits shows them nearly black. The number of bits that are used is found in this order:

1. The file says it: TIFF's BitsPerSample of 12, MaxSampleValue, SMaxSampleValue or WhiteLevel; PNG's sBIT, whose
   samples are to be scaled up to all 16 bits (ISO/IEC 15948, 11.3.2.7) and often are not, which shows in the values.
2. Otherwise whoever asks says it, from the range of the whole source or an option.

The 8 upper bits of those that are used make the picture; with all 16 in use that is how TensorFlow reads it too.
"""

import dataclasses
import io
import sys
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

FULL_BITS: Final = 16
# The depths of sensors, and 8 for files that hold no more.
_USUAL_BITS: Final = (8, 10, 12, 14, FULL_BITS)
# From Pillow's raw modes that keep the upper byte of a sample to the mode that keeps the lower one.
_LOWER_BYTES: Final = {
    **{f"{mode};16B": f"{mode};16L" for mode in ("RGB", "RGBA", "RGBX", "CMYK")},
    **{f"{mode};16L": f"{mode};16B" for mode in ("RGB", "RGBA", "RGBX", "CMYK")},
    **{f"{mode};16N": f"{mode};16{'B' if sys.byteorder == 'little' else 'L'}" for mode in ("RGB", "RGBA", "RGBX")},
}
_GREY_AND_ALPHA: Final = "LA;16B"
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE, _SMAX_SAMPLE_VALUE, _WHITE_LEVEL = 258, 281, 341, 50717
_ORIENTATION: Final = ExifTags.Base.Orientation


def usual_bits(highest: int) -> int:
    """The smallest usual number of bits that holds the value `highest`."""
    return next(bits for bits in _USUAL_BITS if highest < 2**bits)


def fewer_bits(bits: int) -> int:
    """The usual number of bits below `bits`; 0 below them all."""
    return max((usual for usual in _USUAL_BITS if usual < bits), default=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepSamples:
    """The samples of one picture.

    values: [height, width, channels], uint16. `has_alpha`: the last channel is one.
    declared_bits: how many bits the file says are used, where its values do not contradict it; None otherwise.
    is_scaled_up: it says so for samples that are scaled up to all bits, as PNG wants it.
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
        """The highest value of a colour."""
        colours = self.values[..., :-1] if self.has_alpha else self.values
        return int(colours.max())

    def to_image(self, bits: int) -> Image.Image:
        """The picture of 8 bits, of samples that use `bits`; what is higher becomes 255."""
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
    """The samples of `image`, which was opened from `encoded` and not yet loaded; None where they are of 8 bits.

    Raises whatever Pillow raises on a damaged file.
    """
    # Pillow scales those of a PGM to 16 bits, whatever its highest value, and calls the mode I.
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
    """The one that all tiles of an opened image have."""
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
    """Makes the one colour that a PNG calls transparent (tRNS) an alpha channel; it is a value of all 16 bits."""
    colour = image.info.get("transparency")
    if has_alpha or colour is None or isinstance(colour, bytes) or mode not in ("L", "RGB"):
        return values, mode, has_alpha
    opaque = (values != np.asarray(colour, np.uint16)).any(axis=-1, keepdims=True)
    alpha = np.where(opaque, np.uint16(0xFFFF), np.uint16(0))
    return np.concatenate([values, alpha], axis=-1), f"{mode}A", True


def _declared_bits(encoded: bytes, image: Image.Image, values: npt.NDArray[np.uint16]) -> tuple[int | None, bool]:
    """(how many bits the file says are used or None, whether it says so of samples that are scaled up)."""
    highest = int(values.max())
    if image.format == "PNG":
        significant = _significant_bits(encoded)
        if significant is None or not 8 <= significant <= FULL_BITS:
            return None, False
        if significant == FULL_BITS:
            return FULL_BITS, False
        if highest >= 2**significant:
            return FULL_BITS, True
        # Scaled up, the lower bits repeat the upper ones or are zero, and all of these are zero here.
        is_as_it_is = bool((values & (2 ** (FULL_BITS - significant) - 1)).any())
        return (significant if is_as_it_is else None), False
    if image.format == "JPEG2000":  # Pillow scales it to all bits
        return FULL_BITS, False
    tags: Any = getattr(image, "tag_v2", {})
    found = [_first_number(tags.get(tag)) for tag in (_MAX_SAMPLE_VALUE, _SMAX_SAMPLE_VALUE, _WHITE_LEVEL)]
    bits_of_sample = _first_number(tags.get(_BITS_PER_SAMPLE))
    declared = [bits_of_sample] if bits_of_sample is not None and bits_of_sample < FULL_BITS else []
    declared += [max(8, value.bit_length()) for value in found if value is not None and 0 < value < 2**FULL_BITS]
    return next((bits for bits in declared if highest < 2**bits), None), False


def _first_number(value: Any) -> int | None:
    """Of a TIFF tag, which has a value for each channel."""
    first = value[0] if isinstance(value, tuple) and value else value
    return int(first) if isinstance(first, int | float) and first == first // 1 else None


def _significant_bits(encoded: bytes) -> int | None:
    """The largest number in the sBIT chunk of a PNG, which stands before its image data; None where it has none."""
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
