"""The one inference model: what every format is made from, so that they can only differ by their converter.

From pixels or encoded images to probabilities, with the preprocessing that training used inside the graph.
"""

import pathlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from export.signature import CLASS_ID, IMAGE_BYTES, IMAGES, LABEL, PROBABILITIES, SIGNATURE_IMAGE_BYTES, Signature
from trainer.data.preprocess import load_image
from trainer.model.classifier import is_seed

Tensor = Any


class InferenceModel(tf.Module):
    """A float32 Keras classifier (pixels 0 to 255 in, logits out) with the inputs and outputs of `signature`.

    images: tf.function, [batch, size, size, 3] float32 to all outputs.
    image_bytes: tf.function, [batch] string to all outputs; decodes and resizes as training did.
    probabilities: tf.function, `images` to the probabilities alone: what TFLite and ONNX are made from, whose
        runtimes have no strings.

    It holds a copy of the weights, under names that TensorFlow saves whatever the layers are called, and nothing of
    the Keras model: what is saved depends on the network and its weights alone.
    """

    def __init__(self, model: Any, signature: Signature) -> None:
        super().__init__(name="inference_model")
        size = signature.image_size_px
        geometry = signature.geometry
        pixels = tf.TensorSpec([None, size, size, 3], tf.float32, name=IMAGES)
        encoded = tf.TensorSpec([None], tf.string, name=IMAGE_BYTES)

        trainable = [_copy(v) for v in model.trainable_variables]
        non_trainable = [_copy(v) for v in model.non_trainable_variables]

        def classify(images: Tensor) -> Tensor:
            logits, _ = model.stateless_call(trainable, non_trainable, images, training=False)
            return tf.nn.softmax(logits)

        def answer(images: Tensor) -> dict[str, Tensor]:
            probabilities = classify(images)
            class_id = tf.argmax(probabilities, axis=-1, output_type=tf.int64)
            labels = tf.gather(tf.constant(signature.class_names), class_id)
            return {PROBABILITIES: probabilities, CLASS_ID: class_id, LABEL: labels}

        def answer_encoded(image_bytes: Tensor) -> dict[str, Tensor]:
            images = tf.map_fn(
                lambda one: load_image(one, geometry),
                image_bytes,
                fn_output_signature=tf.TensorSpec([size, size, 3], tf.uint8),
            )
            return answer(tf.cast(images, tf.float32))

        # The seeds of dropout take no part in an answer.
        seeded = [is_seed(v) for v in model.non_trainable_variables]
        self.weights = trainable + [c for c, is_one in zip(non_trainable, seeded, strict=True) if not is_one]
        self.images = tf.function(answer, input_signature=[pixels])
        self.image_bytes = tf.function(answer_encoded, input_signature=[encoded])
        self.probabilities = tf.function(lambda images: {PROBABILITIES: classify(images)}, input_signature=[pixels])


def _copy(variable: Any) -> Any:
    # A root scope must not start with an underscore, which layers are free to; hence the one of our own.
    name = "weights/" + re.sub(r"[^A-Za-z0-9_./>-]", "_", str(variable.path))
    return tf.Variable(variable.value, trainable=False, name=name)


@contextmanager
def frozen_saved_model(inference: InferenceModel, signature: Signature) -> Iterator[pathlib.Path]:
    """Yields a temporary SavedModel of `probabilities` at batch 1 whose weights are constants of the graph.

    The TFLite converter loses variables without a word (its file then answers NaN), so it is never shown any. It is
    given a SavedModel, not the frozen function, because only so does the file get a signature with our names.
    """
    size = signature.image_size_px
    spec = tf.TensorSpec([1, size, size, 3], tf.float32, name=IMAGES)
    # `get_concrete_function` of the exported function itself would keep the free batch dimension.
    fixed = tf.function(inference.probabilities.python_function).get_concrete_function(spec)
    frozen = convert_variables_to_constants_v2(fixed)

    class Frozen(tf.Module):
        @tf.function(input_signature=[spec])
        def __call__(self, images: Tensor) -> dict[str, Tensor]:
            return {PROBABILITIES: frozen(images)[0]}

    module = Frozen()
    with tempfile.TemporaryDirectory(prefix="trainer-export-") as directory:
        tf.saved_model.save(module, directory, signatures={SIGNATURE_IMAGE_BYTES: module.__call__})
        yield pathlib.Path(directory)
