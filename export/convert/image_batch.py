"""Decode a batch of image files in a graph, where a broken file does not fail the whole batch.

A graph cannot catch the error of an operation, but a `tf.data` pipeline can drop elements that fail, and TensorFlow
Serving includes its operations.
"""

from typing import Any

import tensorflow as tf

from export.convert.graph_reading import READING_SPECS, Reading, load_pixels, read_header
from export.convert.plain_files import are_plain, load_plain
from export.files.statuses import STATUS_OK, STATUS_UNDECODABLE
from trainer.data.decode.geometry import Geometry

Tensor = Any

# The most pixels to decode in parallel; a larger batch is decoded image by image.
MAX_BATCH_PIXELS = 2**26


# There is no Python control flow to convert, and AutoGraph would take most of the tracing time.
@tf.autograph.experimental.do_not_convert
def load_batch(encoded: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Decode image files, [batch] string, to [batch, size, size, 3] uint8 and [batch] string, one of STATUSES.

    Each image is decoded as in `graph_reading`; the pixels of a refused one are 0.
    """

    decoder = _Decoder(geometry)
    # Fastest first: files that need no header checks, then the whole batch, then one by one, since each pipeline
    # element costs milliseconds. A concatenated dataset starts only if those before it gave no element.
    batch = tf.data.Dataset.from_tensors(encoded)
    plain, all_together = (batch.map(way).ignore_errors() for way in (decoder.load_plain, decoder.load_all))
    one_by_one = batch.map(decoder.load_each)
    found = plain.concatenate(all_together).concatenate(one_by_one).take(1).with_options(_options())
    images, status = found.get_single_element()
    size = geometry.image_size_px
    return tf.ensure_shape(images, [None, size, size, 3]), status


class _Decoder:
    """Three ways to decode a batch: [batch] string to [batch, size, size, 3] uint8 and [batch] status."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._shape = [geometry.image_size_px, geometry.image_size_px, 3]
        # As tf.functions, so that the graph holds each once.
        file = tf.TensorSpec([], tf.string)
        self._read = tf.function(read_header, input_signature=[file], autograph=False)
        self._load = tf.function(
            lambda encoded, *reading: load_pixels(encoded, Reading(*reading), geometry),
            input_signature=[file, *READING_SPECS],
            autograph=False,
        )

    def load_plain(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Decode a batch of plain files; fail if one is not plain, is broken, or has too many pixels."""
        limit = MAX_BATCH_PIXELS // tf.maximum(tf.size(encoded, out_type=tf.int64), 1)
        images = tf.map_fn(
            lambda one: load_plain(one[0], one[1], limit, self._geometry),
            (encoded, are_plain(encoded)),
            fn_output_signature=tf.TensorSpec(self._shape, tf.uint8),
        )
        return images, tf.fill(tf.shape(encoded), STATUS_OK)

    def load_all(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Decode all files in parallel; fail if one is broken or they have too many pixels together."""
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
        """Decode file by file; a broken one gets the status undecodable."""
        num_images = tf.size(encoded, out_type=tf.int64)
        blank = (num_images, tf.zeros(self._shape, tf.uint8), tf.constant(STATUS_UNDECODABLE))
        decoded = (
            tf.data.Dataset.from_tensor_slices((tf.range(num_images), encoded))
            .map(self._load_numbered)
            .ignore_errors()
            # At the end, so that there is always an element to batch.
            .concatenate(tf.data.Dataset.from_tensors(blank))
            .batch(num_images + 1)
            .with_options(_options())
        )
        indices, pixels, status = decoded.get_single_element()
        # Row i of `pixels` is image indices[i]; an image missing from `indices` gets the blank last row.
        last = tf.size(indices, out_type=tf.int64) - 1
        rows = tf.tensor_scatter_nd_update(tf.fill([num_images + 1], last), indices[:, None], tf.range(last + 1))[:-1]
        return tf.gather(pixels, rows), tf.gather(status, rows)

    def _load_numbered(self, index: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reading = self._read(encoded)
        return index, self._load(encoded, *reading), reading.status


def _options() -> tf.data.Options:
    # The pipeline lives for one request: optimising or autotuning it would cost more than it saves.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return options
