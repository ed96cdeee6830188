"""Random changes of training images, each keyed by (seed, epoch, example): the same on any number of workers."""

from typing import Any

import tensorflow as tf

from trainer.config import AugmentConfig
from trainer.data.geometry import Geometry
from trainer.data.order import Purpose, stateless_seed
from trainer.data.preprocess import resize_image, resize_to_square

Tensor = Any
_LIGHT_MIN_AREA = 0.7
_ASPECT_RATIOS = (3 / 4, 4 / 3)


def augment_image(
    image: Tensor, geometry: Geometry, config: AugmentConfig, *, seed: int, epoch: Tensor, example: Tensor
) -> Tensor:
    """One decoded image [height, width, 3] uint8 to a training input [size, size, 3] uint8."""
    key = stateless_seed(seed, epoch, example, Purpose.AUGMENTATION)
    if config.preset == "light":
        image = resize_to_square(_random_crop(image, key), geometry.image_size_px)
    else:
        image = resize_image(image, geometry)
    if config.flip:
        image = tf.image.stateless_random_flip_left_right(image, key)
    return image


def _random_crop(image: Tensor, key: Tensor) -> Tensor:
    """A crop of at least 70% of the area (Szegedy et al. 2015, arXiv:1409.4842, section 6, with a milder bound)."""
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros([1, 0, 4]),
        seed=key,
        min_object_covered=0.0,
        area_range=(_LIGHT_MIN_AREA, 1.0),
        aspect_ratio_range=_ASPECT_RATIOS,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    crop = tf.slice(image, begin, size)
    crop.set_shape([None, None, 3])
    return crop
