"""Encoded images to pixels inside a graph, where one that is broken does not sink the batch that it came in.

A graph cannot catch the error of an operation, but a `tf.data` pipeline can leave out the elements that fail, and
TensorFlow Serving has its operations as well.
"""

from typing import Any

import tensorflow as tf

from export.signature import STATUS_NOT_AN_IMAGE, STATUS_OK, STATUS_UNDECODABLE
from trainer.data.geometry import Geometry
from trainer.data.preprocess import load_image

Tensor = Any

# How the files that `preprocess.decode_image` reads begin; WebP has four bytes of any value in between.
_HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")
_WEBP_HEAD = rb"RIFF\C{4}WEBP"


def load_batch(encoded: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Encoded images, [batch] string, to [batch, size, size, 3] uint8 and [batch] string, one of STATUSES.

    Each image is what `load_image` gives; the pixels of one that it does not read are 0.
    """
    # All at once first: an element of a pipeline costs milliseconds, and bad images are rare. What follows the
    # concatenation is begun only where nothing came out of what stands before it.
    batch = tf.data.Dataset.from_tensors(encoded)
    all_together = batch.map(lambda images: _load_all(images, geometry)).ignore_errors()
    one_by_one = batch.map(lambda images: _load_each(images, geometry))
    images, status = all_together.concatenate(one_by_one).take(1).with_options(_options()).get_single_element()
    return tf.ensure_shape(images, [None, *_shape(geometry)]), status


def _shape(geometry: Geometry) -> list[int]:
    return [geometry.image_size_px, geometry.image_size_px, 3]


def _load_all(encoded: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    images = tf.map_fn(
        lambda one: load_image(one, geometry),
        encoded,
        fn_output_signature=tf.TensorSpec(_shape(geometry), tf.uint8),
    )
    return images, tf.fill(tf.shape(encoded), STATUS_OK)


def _load_each(encoded: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    num_images = tf.size(encoded, out_type=tf.int64)
    blank = (num_images, tf.zeros(_shape(geometry), tf.uint8))
    decoded = (
        tf.data.Dataset.from_tensor_slices((tf.range(num_images), encoded))
        .map(lambda index, one: (index, load_image(one, geometry)))
        .ignore_errors()
        # Behind all images, so that there is a batch also where none is left.
        .concatenate(tf.data.Dataset.from_tensors(blank))
        .batch(num_images + 1)
        .with_options(_options())
    )
    indices, pixels = decoded.get_single_element()
    # Row i of `pixels` is image indices[i]; the images that are missing from `indices` get the last row, the blank one.
    last = tf.size(indices, out_type=tf.int64) - 1
    rows = tf.tensor_scatter_nd_update(tf.fill([num_images + 1], last), indices[:, None], tf.range(last + 1))[:-1]
    failed = tf.where(_begins_like_an_image(encoded), STATUS_UNDECODABLE, STATUS_NOT_AN_IMAGE)
    return tf.gather(pixels, rows), tf.where(rows < last, STATUS_OK, failed)


def _begins_like_an_image(encoded: Tensor) -> Tensor:
    begins = tf.strings.regex_full_match(tf.strings.substr(encoded, 0, 12), _WEBP_HEAD)
    for head in _HEADS:
        begins = begins | (tf.strings.substr(encoded, 0, len(head)) == head)
    return begins


def _options() -> tf.data.Options:
    # The pipeline lives for one request: to rewrite it and to measure its stages would cost more than they save.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return options
