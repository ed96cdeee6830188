"""Encoded images to pixels inside a graph, where one that is broken does not sink the batch that it came in.

A graph cannot catch the error of an operation, but a `tf.data` pipeline can leave out the elements that fail, and
TensorFlow Serving has its operations as well.
"""

from typing import Any

import tensorflow as tf

from export.convert.graph_reading import Reading, load_pixels, read_header
from export.files.statuses import STATUS_OK, STATUS_UNDECODABLE
from trainer.data.geometry import Geometry

Tensor = Any

# So many pixels are decoded at the same time, in as many images as there are; larger batches one image after the other.
MAX_BATCH_PIXELS = 2**26


def load_batch(encoded: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Encoded images, [batch] string, to [batch, size, size, 3] uint8 and [batch] string, one of STATUSES.

    Each image is as `graph_reading` reads it; the pixels of one that it does not read are 0.
    """
    # All at once first: an element of a pipeline costs milliseconds, and broken images are rare. What follows the
    # concatenation is begun only where nothing came out of what stands before it.
    batch = tf.data.Dataset.from_tensors(encoded)
    all_together = batch.map(lambda images: _load_all(images, geometry)).ignore_errors()
    one_by_one = batch.map(lambda images: _load_each(images, geometry))
    images, status = all_together.concatenate(one_by_one).take(1).with_options(_options()).get_single_element()
    return tf.ensure_shape(images, [None, *_shape(geometry)]), status


def _shape(geometry: Geometry) -> list[int]:
    return [geometry.image_size_px, geometry.image_size_px, 3]


def _load_all(encoded: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    scalars = Reading(tf.string, tf.int64, tf.int32, tf.bool, tf.int32)
    readings = tf.map_fn(read_header, encoded, fn_output_signature=Reading(*(tf.TensorSpec([], t) for t in scalars)))
    num_pixels = tf.reduce_sum(tf.where(readings.status == STATUS_OK, readings.num_pixels, 0))
    fits = tf.debugging.Assert((num_pixels <= MAX_BATCH_PIXELS) | (tf.size(encoded) == 1), ["one by one, then"])
    with tf.control_dependencies([fits]):
        readings = Reading(*map(tf.identity, readings))
    images = tf.map_fn(
        lambda one: load_pixels(one[0], Reading(*one[1:]), geometry),
        (encoded, *readings),
        fn_output_signature=tf.TensorSpec(_shape(geometry), tf.uint8),
    )
    return images, readings.status


def _load_each(encoded: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    num_images = tf.size(encoded, out_type=tf.int64)
    blank = (num_images, tf.zeros(_shape(geometry), tf.uint8), tf.constant(STATUS_UNDECODABLE))

    def load(index: Tensor, one: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reading = read_header(one)
        return index, load_pixels(one, reading, geometry), reading.status

    decoded = (
        tf.data.Dataset.from_tensor_slices((tf.range(num_images), encoded))
        .map(load)
        .ignore_errors()
        # Behind all images, so that there is a batch also where none is left.
        .concatenate(tf.data.Dataset.from_tensors(blank))
        .batch(num_images + 1)
        .with_options(_options())
    )
    indices, pixels, status = decoded.get_single_element()
    # Row i of `pixels` is image indices[i]; the images that are missing from `indices` get the last row, the blank one.
    last = tf.size(indices, out_type=tf.int64) - 1
    rows = tf.tensor_scatter_nd_update(tf.fill([num_images + 1], last), indices[:, None], tf.range(last + 1))[:-1]
    return tf.gather(pixels, rows), tf.gather(status, rows)


def _options() -> tf.data.Options:
    # The pipeline lives for one request: to rewrite it and to measure its stages would cost more than they save.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return options
