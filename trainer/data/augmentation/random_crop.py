"""Decode a training image with a random crop, which is cheapest while decoding.

Only the region of the crop is decoded from a JPEG, at 1/2, 1/4 or 1/8 of its size if the crop is at least that many
times larger than the model's input. The crop itself is drawn in pixels of the full image and does not depend on that.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from trainer.data.augmentation.presets import Augmentation
from trainer.data.decode import preprocess
from trainer.data.decode.geometry import Geometry
from trainer.data.sampling.order import Purpose, stateless_seed

Tensor = Any
_ASPECT_RATIOS = (3 / 4, 4 / 3)
# Scales that libjpeg decodes with smaller inverse transforms.
RATIOS = (1, 2, 4, 8)
# Up to this factor a bilinear resize without antialiasing is close enough for a random crop. After scaled decoding the
# factor is below 2 on the shorter side of the crop, times the aspect ratio on the longer.
_MAX_PLAIN_FACTOR = 2 * _ASPECT_RATIOS[1]


def load_training_image(
    encoded: Tensor,
    geometry: Geometry,
    augmentation: Augmentation,
    *,
    seed: int,
    visit: Tensor,
    example: Tensor,
    scaled_decoding: bool = True,
) -> Tensor:
    """Decode encoded bytes, a scalar string, to [size, size, 3] uint8.

    Without random crops this is `preprocess.load_image`. With them, `scaled_decoding` allows invisible approximations:
    decoding at a smaller scale, and resizing by small factors without antialiasing.
    """
    if not augmentation.crops:
        return preprocess.load_image(encoded, geometry)
    key = stateless_seed(seed, visit, example, Purpose.AUGMENTATION)
    is_jpeg = tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"
    draw = _CropDraw(key, augmentation.min_crop_area, geometry.image_size_px)
    crop = tf.cond(
        is_jpeg,
        lambda: _decode_jpeg_crop(encoded, draw, scaled_decoding),
        lambda: _decode_crop(encoded, draw),
    )
    crop.set_shape([None, None, 3])
    if not scaled_decoding:
        return preprocess.resize_to_square(crop, geometry.image_size_px)
    return _resize_crop(crop, geometry.image_size_px)


def random_window(image_shape: Tensor, key: Tensor, *, min_area: float, target_px: int) -> tuple[Tensor, Tensor]:
    """Draw Inception's crop of random area and aspect ratio (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    Args:
        image_shape: [3] int32, of an image [height, width, 3].
        key: [2] int64, of a stateless random operation.
        min_area: smallest area of the crop, as a share of the image.
        target_px: side of the square that the crop will be resized to.

    Returns:
        [4] int32: top, left, height and width in px; the whole image if no such crop fits. And an int32 scalar, the
        index in `RATIOS` of the smallest scale at which the crop can be decoded; its ratio divides the window, so the
        crop is the same at any scale.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        image_shape,
        tf.zeros([1, 0, 4]),
        seed=key,
        min_object_covered=0.0,
        area_range=(min_area, 1.0),
        aspect_ratio_range=_ASPECT_RATIOS,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    times = tf.minimum(size[0], size[1]) // target_px
    index = tf.math.count_nonzero(times >= tf.constant(RATIOS[1:]), dtype=tf.int32)
    ratio = tf.gather(tf.constant(RATIOS), index)
    return tf.concat([begin[:2], size[:2]], axis=0) // ratio * ratio, index


class _CropDraw(NamedTuple):
    key: Tensor
    min_area: float
    target_px: int

    def window(self, image_shape: Tensor) -> tuple[Tensor, Tensor]:
        return random_window(image_shape, self.key, min_area=self.min_area, target_px=self.target_px)


def _decode_jpeg_crop(encoded: Tensor, draw: _CropDraw, scaled_decoding: bool) -> Tensor:
    window, index = draw.window(tf.image.extract_jpeg_shape(encoded))
    if not scaled_decoding:
        return tf.io.decode_and_crop_jpeg(encoded, window, channels=3)

    def decode_at(ratio: int) -> Any:
        return lambda: tf.io.decode_and_crop_jpeg(encoded, window // ratio, channels=3, ratio=ratio)

    return tf.switch_case(index, [decode_at(ratio) for ratio in RATIOS])


def _decode_crop(encoded: Tensor, draw: _CropDraw) -> Tensor:
    image = preprocess.decode_image(encoded)
    window, _ = draw.window(tf.shape(image))
    return tf.slice(image, tf.concat([window[:2], [0]], axis=0), tf.concat([window[2:], [3]], axis=0))


def _resize_crop(crop: Tensor, size_px: int) -> Tensor:
    """Resize bilinearly to [size_px, size_px, 3] uint8, with antialiasing only for large factors."""
    longer_side = tf.reduce_max(tf.shape(crop)[:2])
    return tf.cond(
        tf.cast(longer_side, tf.float32) < _MAX_PLAIN_FACTOR * size_px,
        lambda: _resize_plainly(crop, size_px),
        lambda: preprocess.resize_to_square(crop, size_px),
    )


def _resize_plainly(crop: Tensor, size_px: int) -> Tensor:
    # The kernel is faster on floats than on bytes, and interpolation stays within [0, 255].
    resized = tf.image.resize(tf.cast(crop, tf.float32), [size_px, size_px], method="bilinear")
    return tf.cast(tf.round(resized), tf.uint8)
