"""TFLite files: float32, float16, dynamic-range and full-integer weights, made of built-in operators alone.

Every file takes one image at a time, `images` [1, size, size, 3], and answers `probabilities` [1, classes] under
the signature `serving_default`. The int8 file takes the pixels as they are, uint8, and answers uint8 with the
scale 1/256 that the file states; the others take and give float32.
"""

import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.lite.python.convert_phase import ConverterError

from export.formats import TFLITE_DYNAMIC, TFLITE_FLOAT16, TFLITE_FLOAT32, TFLITE_INT8, Format
from export.inference_model import InferenceModel, frozen_saved_model
from export.samples import Pixels
from export.signature import IMAGES, TFLITE_SIGNATURE, Signature
from trainer.errors import ExportError
from trainer.tf_runtime import stderr_held_back


def convert_to_tflite(
    inference: InferenceModel, signature: Signature, formats: Sequence[Format], calibration: Pixels
) -> Iterator[tuple[Format, bytes]]:
    """Yields the content of one file per format.

    calibration: [n, size, size, 3], training images from which the int8 file takes the range of every tensor;
        read only where int8 is asked for.

    Raises:
        ExportError: the model needs an operator that a format has not; it is named.
    """
    with frozen_saved_model(inference, signature) as directory:
        for wanted in formats:
            yield wanted, convert_frozen(directory, wanted, calibration)


def convert_frozen(saved_model: pathlib.Path, wanted: Format, calibration: Pixels) -> bytes:
    """One format, from a SavedModel without variables as `frozen_saved_model` makes it."""
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=[TFLITE_SIGNATURE])
    # Without TensorFlow's own operators (Flex), which phones and ai-edge-litert do not have.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    _SETTINGS[wanted.name](converter, calibration)
    return _run(converter, wanted)


def _run(converter: Any, wanted: Format) -> bytes:
    failure = None
    # What the converter prints tells a user nothing; what goes wrong is all in its error.
    with stderr_held_back(), warnings.catch_warnings():
        # Its calibrator still uses the interpreter that TensorFlow itself tells us not to use.
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated")
        try:
            content: bytes = converter.convert()
        except ConverterError as e:
            failure = e
    if failure:
        raise ExportError(_explain(failure, wanted)) from failure
    return content


def _set_float32(converter: Any, _: Pixels) -> None:
    pass  # what the converter does unasked


def _set_float16(converter: Any, _: Pixels) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _set_dynamic(converter: Any, _: Pixels) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]


def _set_int8(converter: Any, calibration: Pixels) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    converter.inference_output_type = tf.uint8
    converter.representative_dataset = lambda: (
        {IMAGES: image[np.newaxis].astype(np.float32)} for image in span_full_range(calibration)
    )


_SETTINGS = {
    TFLITE_FLOAT32.name: _set_float32,
    TFLITE_FLOAT16.name: _set_float16,
    TFLITE_DYNAMIC.name: _set_dynamic,
    TFLITE_INT8.name: _set_int8,
}


def span_full_range(calibration: Pixels) -> Pixels:
    """The same images, but the first has a black and a white corner pixel.

    The input's range is then 0 to 255 on every dataset and its quantisation the identity: a client hands over raw
    pixels, and images brighter than all of the calibration's are not clipped.
    """
    spanning = calibration.copy()
    spanning[0, 0, 0] = 0
    spanning[0, -1, -1] = 255
    return spanning


def _explain(error: Any, wanted: Format) -> str:
    operators = sorted({e.operator.name for e in error.errors if e.operator.name})
    # The converter knows an operator by its place in the Keras model, such as "classifier/head/MatMul".
    places = sorted({call.name for e in error.errors for call in e.location.call if call.name})
    if not operators:
        first_line = str(error).strip().splitlines()[0]
        return f"the TFLite converter cannot make {wanted.name}: {first_line}"
    where = f" (in {', '.join(places)})" if places else ""
    return (
        f"{wanted.name} has no operator for {', '.join(operators)}{where}, and TensorFlow's own (Flex) are not on "
        f"devices; use another backbone, or leave {wanted.name} out of --formats"
    )
