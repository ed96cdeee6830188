"""Build the inference model that all formats are converted from, so that they differ only by converter.

It maps pixels or encoded images to probabilities, with the preprocessing of training inside the graph.
"""

import pathlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import keras
import tensorflow as tf

from export.convert.image_batch import load_batch
from export.files.signature import (
    CLASS_ID,
    FEATURES,
    IMAGE_BYTES,
    IMAGES,
    LABEL,
    LOGITS,
    NO_CLASS,
    PREDICTED,
    PROBABILITIES,
    SIGNATURE_IMAGE_BYTES,
    STATUS,
    Signature,
)
from export.files.statuses import STATUS_BAD_PIXELS, STATUS_OK
from trainer.errors import ExportError
from trainer.system import in_use
from trainer.system.private_api.keras_graph import is_seed
from trainer.system.private_api.tensorflow_graph import convert_variables_to_constants_v2

Tensor = Any
# The last layer of every classifier, see `trainer.model.head`.
_HEAD = "head"
# Exports are not trained, and the custom gradient of swish (EfficientNet) cannot be saved.
WITHOUT_GRADIENTS = tf.saved_model.SaveOptions(experimental_custom_gradients=False)


class InferenceModel(tf.Module):
    """A Keras classifier (pixels 0 to 255 in, float32 logits out) with the inputs and outputs of `signature`.

    Attributes:
        images: tf.function, [batch, size, size, 3] float32 to all outputs; an image with pixels outside 0 to 255 or NaN
            gets a `status` and no class.
        image_bytes: tf.function, [batch] string to all outputs; decodes and resizes as in training.
        probabilities: tf.function, `images` to probabilities only: the source of TFLite and ONNX, without strings.

    It holds a copy of the weights, under names that TensorFlow accepts whatever the layers are called, and no reference
    to the Keras model: the SavedModel depends only on the network and its weights.
    """

    def __init__(
        self, model: Any, signature: Signature, *, keeps_weights_in: Literal["float32", "bfloat16"] = "float32"
    ) -> None:
        """Copy the weights of `model` and create its functions.

        With `keeps_weights_in` bfloat16, kernels are rounded; vectors (biases, batch statistics) stay float32, since
        they are a thousandth of the bytes.

        Raises:
            ExportError: the signature has `features` and the model has no layer called head.
        """
        super().__init__(name="inference_model")
        size = signature.image_size_px
        pixels = tf.TensorSpec([None, size, size, 3], tf.float32, name=IMAGES)
        encoded = tf.TensorSpec([None], tf.string, name=IMAGE_BYTES)
        has_features = signature.has_output(FEATURES)
        network = _with_features(model) if has_features else model

        trainable = [_copy(v, keeps_weights_in) for v in network.trainable_variables]
        non_trainable = [_copy(v, keeps_weights_in) for v in network.non_trainable_variables]

        def infer(images: Tensor) -> tuple[Tensor, Tensor | None]:
            answers, _ = network.stateless_call(trainable, non_trainable, images, training=False)
            return answers if has_features else (answers, None)

        def answer_where_ok(images: Tensor, status: Tensor) -> dict[str, Tensor]:
            outputs = _outputs(*infer(images), signature)
            return {**_blank_where(status != STATUS_OK, outputs), STATUS: status}

        def answer(images: Tensor) -> dict[str, Tensor]:
            # Comparisons with NaN are false.
            is_right = tf.reduce_all((images >= 0.0) & (images <= 255.0), axis=[1, 2, 3])
            pixels = tf.where(is_right[:, None, None, None], images, tf.zeros_like(images))
            return answer_where_ok(pixels, tf.where(is_right, STATUS_OK, STATUS_BAD_PIXELS))

        def answer_encoded(image_bytes: Tensor) -> dict[str, Tensor]:
            images, status = load_batch(image_bytes, signature.geometry)
            return answer_where_ok(tf.cast(images, tf.float32), status)

        def answer_probabilities(images: Tensor) -> dict[str, Tensor]:
            logits, _ = infer(images)
            return {PROBABILITIES: _probabilities(logits, signature)}

        # Dropout seeds do not affect inference.
        seeded = [is_seed(v) for v in network.non_trainable_variables]
        self.weights = trainable + [c for c, is_one in zip(non_trainable, seeded, strict=True) if not is_one]
        self.images = tf.function(answer, input_signature=[pixels])
        self.image_bytes = tf.function(answer_encoded, input_signature=[encoded])
        self.probabilities = tf.function(answer_probabilities, input_signature=[pixels])


def num_features_of(model: Any) -> int:
    """Return the size of the head's input. Raises ExportError as `InferenceModel` does."""
    return int(_head_input(model).shape[-1])


def _head_input(model: Any) -> Any:
    try:
        return model.get_layer(_HEAD).input
    except ValueError:
        raise ExportError(
            f"{model.name} has no layer called {_HEAD}, whose input would be the features; leave them out of --outputs"
        ) from None


def _with_features(model: Any) -> Any:
    return keras.Model(model.input, [model.output, _head_input(model)], name=model.name)


def _probabilities(logits: Tensor, signature: Signature) -> Tensor:
    if signature.temperature is not None:
        logits = logits / signature.temperature
    return tf.sigmoid(logits) if signature.task == "multi_label" else tf.nn.softmax(logits)


def _outputs(logits: Tensor, features: Tensor | None, signature: Signature) -> dict[str, Tensor]:
    probabilities = _probabilities(logits, signature)
    class_id = tf.argmax(probabilities, axis=-1, output_type=tf.int64)
    outputs = {
        PROBABILITIES: probabilities,
        CLASS_ID: class_id,
        LABEL: tf.gather(tf.constant(signature.class_names), class_id),
    }
    if signature.thresholds is not None:
        outputs[PREDICTED] = probabilities >= tf.constant(signature.thresholds, tf.float32)
    if signature.has_output(LOGITS):
        outputs[LOGITS] = logits
    if features is not None:
        outputs[FEATURES] = tf.cast(features, tf.float32)  # of a network in bfloat16
    return outputs


def _blank_where(is_bad: Tensor, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `outputs` with blank rows where `is_bad`, [batch].

    Zeros rather than equal probabilities: they cannot be mistaken for a prediction, and JSON has no NaN.
    """
    blanks = {CLASS_ID: tf.constant(NO_CLASS, tf.int64), LABEL: tf.constant("")}

    def blank(name: str, values: Tensor) -> Tensor:
        rows = tf.reshape(is_bad, [-1, *[1] * (len(values.shape) - 1)])
        return tf.where(rows, blanks.get(name, tf.zeros([], values.dtype)), values)

    return {name: blank(name, values) for name, values in outputs.items()}


def _copy(variable: Any, kernel_dtype: str) -> Any:
    # TensorFlow refuses a root scope that starts with an underscore, which Keras layers may.
    name = "weights/" + re.sub(r"[^A-Za-z0-9_./>-]", "_", str(variable.path))
    is_kernel = len(variable.shape) > 1
    return tf.Variable(
        tf.cast(variable.value, kernel_dtype) if is_kernel else variable.value, trainable=False, name=name
    )


@contextmanager
def frozen_saved_model(inference: InferenceModel, signature: Signature) -> Iterator[pathlib.Path]:
    """Yield a temporary SavedModel of `probabilities` at batch size 1, with the weights as graph constants.

    The TFLite converter silently loses variables (the file then answers NaN), so it gets constants. It gets a
    SavedModel and not the frozen function because only then does the file have a signature with our names.
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
    with in_use.scratch_folder() as directory:
        signatures = {SIGNATURE_IMAGE_BYTES: module.__call__}
        tf.saved_model.save(module, str(directory), signatures=signatures, options=WITHOUT_GRADIENTS)
        yield directory
