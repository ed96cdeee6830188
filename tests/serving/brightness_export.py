"""A model small enough for tests, with the signatures of every export: it names the brightness of an image."""

import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from export.files.signature import Signature
from export.files.version_proof import WARMUP_FILE, GoldenAnswer, VersionChecksums, VersionGolden
from trainer.data.decode.geometry import Geometry

CLASS_NAMES = ["dark", "medium", "bright"]
SIZE = 8


def jpeg(brightness: int, *, width: int = 20, height: int = 12) -> bytes:
    """An even grey image as JPEG."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height), (brightness,) * 3).save(buffer, "JPEG")
    return buffer.getvalue()


def brightness_signature() -> Signature:
    geometry = Geometry(image_size_px=SIZE, resize="crop")
    return Signature.of_classifier(model_name="brightness", class_names=CLASS_NAMES, geometry=geometry)


def save_brightness_model(
    path: pathlib.Path, *, class_names: Sequence[str] = CLASS_NAMES, sharpness: float = 20.0
) -> None:
    """Saves the model; with other `class_names` its labels are in another order, with other `sharpness` its weight."""
    import tensorflow as tf  # after tf_runtime.configure()

    from export.convert.image_batch import load_batch

    def classify(images: Any) -> dict[str, Any]:
        level = tf.reduce_mean(images, axis=[1, 2, 3]) / 255.0
        closeness = -tf.abs(level[:, None] - tf.constant([0.0, 0.5, 1.0]))
        probabilities = tf.nn.softmax(closeness * module.sharpness)
        class_id = tf.argmax(probabilities, axis=-1)
        return {"probabilities": probabilities, "class_id": class_id, "label": tf.gather(module.labels, class_id)}

    def decode_unguarded(encoded: Any) -> Any:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        image.set_shape([None, None, 3])
        return tf.image.resize(image, [SIZE, SIZE])

    def spec(shape: list[int | None], dtype: Any, name: str) -> Any:
        return tf.TensorSpec(shape, dtype, name)

    @tf.function(input_signature=[spec([None], tf.string, "image_bytes")])
    def from_bytes(image_bytes: Any) -> dict[str, Any]:
        images, status = load_batch(image_bytes, Geometry(image_size_px=SIZE, resize="squash"))
        return {**classify(tf.cast(images, tf.float32)), "status": status}

    @tf.function(input_signature=[spec([None, SIZE, SIZE, 3], tf.float32, "images")])
    def from_pixels(images: Any) -> dict[str, Any]:
        return classify(images)

    @tf.function(input_signature=[spec([None], tf.string, "image_bytes")])
    def unguarded(image_bytes: Any) -> dict[str, Any]:
        return classify(tf.map_fn(decode_unguarded, image_bytes, fn_output_signature=tf.float32))

    # What a classifier does not have, but the protocol does: one output, two inputs, bytes out, and time to spend.
    @tf.function(input_signature=[spec([None, 2], tf.float32, "a"), spec([None], tf.int64, "b")])
    def ratio(a: Any, b: Any) -> dict[str, Any]:
        return {"ratio": tf.math.divide(a, tf.cast(b, tf.float32)[:, None])}

    @tf.function(input_signature=[spec([None], tf.string, "text")])
    def reverse(text: Any) -> dict[str, Any]:
        return {"text_bytes": tf.strings.join([text, b"\xff"]), "length": tf.strings.length(text)}

    @tf.function(input_signature=[spec([None], tf.int64, "num_iterations")])
    def count(num_iterations: Any) -> dict[str, Any]:
        def step(i: Any, x: Any) -> Any:
            return i + 1, tf.math.sin(x) + 1.0

        _, x = tf.while_loop(
            lambda i, _: i < num_iterations[0],
            step,
            (tf.constant(0, tf.int64), tf.constant(0.5)),
            parallel_iterations=1,
        )
        return {"value": tf.fill(tf.shape(num_iterations), x)}

    module = tf.Module()
    module.labels = tf.constant(list(class_names))
    module.sharpness = tf.Variable(sharpness)
    signatures = {
        "serving_default": from_bytes,
        "images": from_pixels,
        "unguarded": unguarded,
        "ratio": ratio,
        "reverse": reverse,
        "count": count,
    }
    tf.saved_model.save(module, str(path), signatures=signatures)


def grey_pixels(*levels: int) -> np.ndarray[Any, Any]:
    """[len(levels), SIZE, SIZE, 3] float32."""
    return np.stack([np.full((SIZE, SIZE, 3), level, np.float32) for level in levels])


def prove_brightness_model(path: pathlib.Path) -> None:
    """Adds what `trainer export` adds to a version: warm-up requests, golden answers and checksums."""
    from export.convert.to_saved_model import count_warmup_requests, write_warmup_requests
    from export.runtime.runtimes import SavedModelRuntime
    from export.runtime.samples import Batch

    levels = (0, 90, 160, 255)
    batch = Batch([jpeg(level) for level in levels], grey_pixels(*levels).astype(np.uint8), np.zeros(4, np.int64))
    (path / WARMUP_FILE).parent.mkdir()
    write_warmup_requests(path / WARMUP_FILE, brightness_signature(), batch)
    runtime = SavedModelRuntime(path)
    answers = {
        "images": runtime.predict_images(batch.images),
        "serving_default": runtime.predict_encoded(batch.encoded),
    }
    VersionGolden(
        images=batch.images,
        encoded=batch.encoded,
        num_warmup_requests=count_warmup_requests(path),
        answers={
            name: GoldenAnswer(probabilities=outputs["probabilities"], max_difference=1e-4, labels=outputs["label"])
            for name, outputs in answers.items()
        },
    ).save(path)
    VersionChecksums.of(path).save(path)
