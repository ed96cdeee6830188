"""Encoded images to pixels inside a graph, where one that is broken does not sink the batch that it came in.

A graph cannot catch the error of an operation, but a `tf.data` pipeline can leave out the elements that fail, and
TensorFlow Serving has its operations as well.
"""

from typing import Any

import tensorflow as tf

from export.convert.graph_reading import READING_SPECS, Reading, load_pixels, read_header
from export.convert.plain_files import are_plain, load_plain
from export.files.statuses import STATUS_OK, STATUS_UNDECODABLE
from trainer.data.decode.geometry import Geometry

Tensor = Any

# So many pixels are decoded at the same time, in as many images as there are; larger batches one image after the other.
MAX_BATCH_PIXELS = 2**26


# Nothing here is Python control flow; to look for some takes most of the time of tracing.
@tf.autograph.experimental.do_not_convert
def load_batch(encoded: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Encoded images, [batch] string, to [batch, size, size, 3] uint8 and [batch] string, one of STATUSES.

    Each image is as `graph_reading` reads it; the pixels of one that it does not read are 0.
    """

    decoder = _Decoder(geometry)
    # The quickest way first: files that no header has to be looked at for, then all at once, then one by one, since an
    # element of a pipeline costs milliseconds. What follows a concatenation is begun only where nothing came out of
    # what stands before it.
    batch = tf.data.Dataset.from_tensors(encoded)
    plain, all_together = (batch.map(way).ignore_errors() for way in (decoder.load_plain, decoder.load_all))
    one_by_one = batch.map(decoder.load_each)
    found = plain.concatenate(all_together).concatenate(one_by_one).take(1).with_options(_options())
    images, status = found.get_single_element()
    size = geometry.image_size_px
    return tf.ensure_shape(images, [None, size, size, 3]), status


class _Decoder:
    """The ways of a batch through the graph: [batch] string to [batch, size, size, 3] uint8 and [batch] status."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._shape = [geometry.image_size_px, geometry.image_size_px, 3]
        # Functions of the graph, so that it holds them once.
        file = tf.TensorSpec([], tf.string)
        self._read = tf.function(read_header, input_signature=[file], autograph=False)
        self._load = tf.function(
            lambda encoded, *reading: load_pixels(encoded, Reading(*reading), geometry),
            input_signature=[file, *READING_SPECS],
            autograph=False,
        )

    def load_plain(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Fails where one of them is not plain, is broken, or is so large that all together might be."""
        limit = MAX_BATCH_PIXELS // tf.maximum(tf.size(encoded, out_type=tf.int64), 1)
        images = tf.map_fn(
            lambda one: load_plain(one[0], one[1], limit, self._geometry),
            (encoded, are_plain(encoded)),
            fn_output_signature=tf.TensorSpec(self._shape, tf.uint8),
        )
        return images, tf.fill(tf.shape(encoded), STATUS_OK)

    def load_all(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Fails where one of them is broken, or all together are large."""
        readings = tf.map_fn(self._read, encoded, fn_output_signature=READING_SPECS)
        num_pixels = tf.reduce_sum(tf.where(readings.status == STATUS_OK, readings.num_pixels, 0))
        fits = tf.debugging.Assert((num_pixels <= MAX_BATCH_PIXELS) | (tf.size(encoded) == 1), ["one by one, then"])
        with tf.control_dependencies([fits]):
            encoded = tf.identity(encoded)
        images = tf.map_fn(
            lambda one: self._load(*one),
            (encoded, *readings),
            fn_output_signature=tf.TensorSpec(self._shape, tf.uint8),
        )
        return images, readings.status

    def load_each(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Never fails; an image that does is undecodable."""
        num_images = tf.size(encoded, out_type=tf.int64)
        blank = (num_images, tf.zeros(self._shape, tf.uint8), tf.constant(STATUS_UNDECODABLE))
        decoded = (
            tf.data.Dataset.from_tensor_slices((tf.range(num_images), encoded))
            .map(self._load_numbered)
            .ignore_errors()
            # Behind all images, so that there is a batch also where none is left.
            .concatenate(tf.data.Dataset.from_tensors(blank))
            .batch(num_images + 1)
            .with_options(_options())
        )
        indices, pixels, status = decoded.get_single_element()
        # Row i of `pixels` is image indices[i]; images that are missing from `indices` get the last row, the blank one.
        last = tf.size(indices, out_type=tf.int64) - 1
        rows = tf.tensor_scatter_nd_update(tf.fill([num_images + 1], last), indices[:, None], tf.range(last + 1))[:-1]
        return tf.gather(pixels, rows), tf.gather(status, rows)

    def _load_numbered(self, index: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reading = self._read(encoded)
        return index, self._load(encoded, *reading), reading.status


def _options() -> tf.data.Options:
    # The pipeline lives for one request: to rewrite it and to measure its stages would cost more than they save.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return options
