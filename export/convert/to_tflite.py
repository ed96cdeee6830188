"""Convert to TFLite: float32, float16, dynamic-range and integer files, from built-in operators only.

Every file takes one image at a time, `images` [1, size, size, 3], and returns `probabilities` [1, classes] under the
signature `serving_default`. The int8 file takes raw uint8 pixels and returns uint8 with the scale 1/256 that the file
states; the others take and return float32.
"""

import collections
import csv
import io
import math
import pathlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from export.convert.quantization import NUM_RANKING_IMAGES, most_sensitive, signal_to_noise
from export.convert.tflite_float16 import to_float16
from export.files.formats import TFLITE_DYNAMIC, TFLITE_FLOAT16, TFLITE_INT8, TFLITE_INT8X16, Format
from export.files.signature import IMAGES, TFLITE_SIGNATURE
from export.runtime.samples import Pixels
from trainer.errors import ExportError
from trainer.system.private_api.tensorflow_lite import ConverterError, convert_bytearray_to_object, modify_model_io_type
from trainer.system.tf_runtime import stderr_held_back


def convert_to_tflite(
    saved_model: pathlib.Path, wanted: Format, calibration: Pixels, share_in_float: float = 0.0
) -> bytes:
    """Return the content of one file, from a SavedModel without variables (see `frozen_saved_model`).

    `calibration` are training images, [n, size, size, 3], for the tensor ranges of integer files, unused for others.
    `share_in_float` is for int8 only, see `Quantisation`.

    Raises:
        ExportError: the format lacks an operator of the model; it is named.
    """
    failure = None
    try:
        with _quiet():
            if share_in_float and wanted == TFLITE_INT8:
                return _convert_in_part(saved_model, calibration, share_in_float)
            content: bytes = _converter(saved_model, wanted, calibration).convert()
            return to_float16(content) if wanted == TFLITE_FLOAT16 else content
    except ConverterError as e:
        failure = e
    raise ExportError(_explain(failure, wanted)) from failure


def _converter(saved_model: pathlib.Path, wanted: Format, calibration: Pixels) -> Any:
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=[TFLITE_SIGNATURE])
    # No TensorFlow operators (Flex), which phones and ai-edge-litert lack.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if wanted in (TFLITE_DYNAMIC, TFLITE_INT8, TFLITE_INT8X16):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if wanted.calibrated:
        converter.representative_dataset = lambda: (
            {IMAGES: image[np.newaxis].astype(np.float32)} for image in span_full_range(calibration)
        )
    if wanted == TFLITE_INT8:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.uint8
    if wanted == TFLITE_INT8X16:
        # An operator without a 16-bit kernel is an error: none is silently left in float32.
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
    return converter


def _convert_in_part(saved_model: pathlib.Path, calibration: Pixels, share: float) -> bytes:
    """Convert to int8 except for the layers whose quantisation harms most."""

    def debug(**options: Any) -> Any:
        return tf.lite.experimental.QuantizationDebugger(
            converter=_converter(saved_model, TFLITE_INT8, calibration),
            debug_dataset=lambda: ([i[np.newaxis].astype(np.float32)] for i in calibration[:NUM_RANKING_IMAGES]),
            debug_options=tf.lite.experimental.QuantizationDebugOptions(**options),
        )

    def decibels(exact: Any, quantised: Any, scale: float, zero_point: int) -> float:
        return signal_to_noise(exact, (quantised.astype(np.float32) - zero_point) * scale, channel_axis=-1)

    ranking = debug(layer_direct_compare_metrics={"decibels": decibels})
    with np.errstate(all="ignore"):  # the debugger's own metrics divide by zero
        ranking.run()
    table = io.StringIO()
    ranking.layer_statistics_dump(table)
    table.seek(0)
    # Not the first or last operator: the file must take and return uint8 like any int8 file.
    layers = {row["tensor_name"]: float(row["decibels"]) for row in list(csv.DictReader(table))[1:-1]}
    readers, num_weights = _graph_of(ranking.get_nondebug_quantized_model())
    spared = most_sensitive(layers, share, readers=readers, num_weights=num_weights)
    kept = [name for name in spared if name in layers]
    content = debug(denylisted_nodes=kept).get_nondebug_quantized_model()
    modified: bytes = bytes(modify_model_io_type(content, tf.uint8, tf.uint8))
    return modified


def _graph_of(content: bytes) -> tuple[dict[str, set[str]], dict[str, int]]:
    """Return, by the name of an operator's output, the outputs of its readers, and its number of weights."""
    model = convert_bytearray_to_object(bytearray(content))
    (graph,) = model.subgraphs
    names = [tensor.name.decode() for tensor in graph.tensors]
    readers: dict[str, set[str]] = collections.defaultdict(set)
    num_weights: dict[str, int] = {}
    for operator in graph.operators:
        written = {names[i] for i in operator.outputs}
        inputs = [i for i in operator.inputs if i >= 0]  # -1: an optional input that is absent
        constants = [i for i in inputs if model.buffers[graph.tensors[i].buffer].data is not None]
        for read in inputs:
            readers[names[read]] |= written
        num_weights.update(dict.fromkeys(written, sum(math.prod(graph.tensors[i].shape) for i in constants)))
    return readers, num_weights


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the converter, which repeats everything useful in its error."""
    with stderr_held_back(), warnings.catch_warnings():
        # Its calibrator still uses the interpreter that TensorFlow deprecates.
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated")
        yield


def span_full_range(calibration: Pixels) -> Pixels:
    """Return the images with one black and one white corner pixel in the first.

    The input range is then 0 to 255 on every dataset and its quantisation the identity: clients pass raw pixels, and
    images brighter than all calibration images are not clipped.
    """
    spanning = calibration.copy()
    spanning[0, 0, 0] = 0
    spanning[0, -1, -1] = 255
    return spanning


def _explain(error: Any, wanted: Format) -> str:
    operators = sorted({e.operator.name for e in error.errors if e.operator.name})
    # The converter names the operator's place in the Keras model, such as "classifier/head/MatMul".
    places = sorted({call.name for e in error.errors for call in e.location.call if call.name})
    if not operators:
        first_line = str(error).strip().splitlines()[0]
        return f"the TFLite converter cannot make {wanted.name}: {first_line}"
    where = f" (in {', '.join(places)})" if places else ""
    return (
        f"{wanted.name} has no operator for {', '.join(operators)}{where}, and TensorFlow's own (Flex) are not on "
        f"devices; use another backbone, or leave {wanted.name} out of --formats"
    )
