"""Encoded bytes to a training image, with its random crop: the part of augmentation that is cheapest while decoding."""

from typing import Any

import tensorflow as tf

from trainer.data import preprocess
from trainer.data.augment import Augmentation
from trainer.data.geometry import Geometry
from trainer.data.order import Purpose, stateless_seed

Tensor = Any
_ASPECT_RATIOS = (3 / 4, 4 / 3)


def load_training_image(
    encoded: Tensor, geometry: Geometry, augmentation: Augmentation, *, seed: int, visit: Tensor, example: Tensor
) -> Tensor:
    """Encoded bytes, a scalar string, to [size, size, 3] uint8."""
    image = preprocess.decode_image(encoded)
    if not augmentation.crops:
        return preprocess.resize_image(image, geometry)
    key = stateless_seed(seed, visit, example, Purpose.AUGMENTATION)
    crop = _random_crop(image, key, augmentation.min_crop_area)
    return preprocess.resize_to_square(crop, geometry.image_size_px)


def _random_crop(image: Tensor, key: Tensor, min_area: float) -> Tensor:
    """Inception's crop of a random area and aspect ratio (Szegedy et al. 2015, arXiv:1409.4842, section 6)."""
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros([1, 0, 4]),
        seed=key,
        min_object_covered=0.0,
        area_range=(min_area, 1.0),
        aspect_ratio_range=_ASPECT_RATIOS,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    crop = tf.slice(image, begin, size)
    crop.set_shape([None, None, 3])
    return crop
