"""Run the training decoder (`preprocess.decode_image`) on one or many images before training starts.

It runs in sessions: an eager operation or a tf.function would initialize TensorFlow's global context, after which
`launch`, which prepares raw folders before it configures devices, could not split the CPU or join a cluster.
"""

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

BATCH_SIZE = 64


def decode_as_training(encoded: bytes, format_name: str) -> npt.NDArray[np.uint8] | None:
    """Decode to [height, width, 3], or None if the training decoder refuses the bytes. Thread-safe."""
    import tensorflow as tf

    try:
        return _pixel_decoder(is_webp=format_name == "webp")(np.array(encoded, object))
    except tf.errors.InvalidArgumentError:
        return None


def shapes_as_training(encoded: Sequence[bytes]) -> list[tuple[int, ...] | None]:
    """Return the shapes that `decode_as_training` gives for at most `BATCH_SIZE` images that are not WebP.

    They are decoded in one call that releases the GIL, and only the shapes are returned.
    """
    import tensorflow as tf

    contents = np.full([BATCH_SIZE], _tiny_png(), object)
    contents[: len(encoded)] = encoded
    try:
        return [tuple(shape) for shape in _shape_decoder()(contents)[: len(encoded)].tolist()]
    except tf.errors.InvalidArgumentError:  # for one of them, unknown which
        decoded = (decode_as_training(content, "") for content in encoded)
        return [None if pixels is None else pixels.shape for pixels in decoded]


@functools.cache
def _pixel_decoder(*, is_webp: bool) -> Callable[[npt.NDArray[np.object_]], npt.NDArray[np.uint8]]:
    """Build one branch of `preprocess.decode_image`, without the `tf.cond` between the branches."""
    import tensorflow as tf

    from trainer.data.decode import preprocess

    with tf.Graph().as_default() as graph:
        encoded = tf.compat.v1.placeholder(tf.string, [])
        decoded = preprocess.decode_webp(encoded) if is_webp else preprocess.decode_not_webp(encoded)
    return _callable(graph, decoded, encoded)


@functools.cache
def _shape_decoder() -> Callable[[npt.NDArray[np.object_]], npt.NDArray[np.int32]]:
    """Build a function from [BATCH_SIZE] encoded images to their shapes, [BATCH_SIZE, 3]."""
    import tensorflow as tf

    from trainer.data.decode import preprocess

    with tf.Graph().as_default() as graph:
        encoded = tf.compat.v1.placeholder(tf.string, [BATCH_SIZE])
        shapes = tf.stack([tf.shape(preprocess.decode_not_webp(image)) for image in tf.unstack(encoded)])
    return _callable(graph, shapes, encoded)


def _callable(graph: Any, fetch: Any, feed: Any) -> Callable[[npt.NDArray[np.object_]], Any]:
    import tensorflow as tf

    # -1: on the calling thread; handing small images to a pool costs more than decoding them.
    config = tf.compat.v1.ConfigProto(device_count={"GPU": 0}, inter_op_parallelism_threads=-1)
    session = tf.compat.v1.Session(graph=graph, config=config)
    call: Callable[[npt.NDArray[np.object_]], Any] = session.make_callable(fetch, [feed])
    return call


@functools.cache
def _tiny_png() -> bytes:
    """Return a 1 x 1 PNG, to pad a batch."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()
