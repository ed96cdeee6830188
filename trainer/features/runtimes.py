"""Run a trunk outside of TensorFlow: with ONNX Runtime or LiteRT, on all cores of the processor.

The other runtimes and the packages that write their files are imported when they are used: a launch that needs none
starts without them.
"""

import concurrent.futures
import os
import tempfile
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.errors import ModelError
from trainer.system.private_api.tensorflow_graph import convert_variables_to_constants_v2
from trainer.system.tf_runtime import stderr_held_back

Runtime = Literal["tensorflow", "onnxruntime", "litert"]
Array = npt.NDArray[np.float32]
# Pixels [b, size, size, 3], uint8 or float32 from 0 to 255, to features [b, ...].
Compute = Callable[[npt.NDArray[Any]], Array]

# Largest difference of another runtime's features from Keras's, relative to the largest feature.
MAX_RELATIVE_DIFFERENCE = 1e-4
_NUM_COMPARED = 8


def make_compute(runtime: Runtime, trunk: Any) -> Compute:
    """Return a function that runs `trunk` on ONNX Runtime or LiteRT; raise ModelError if it is not supported."""
    return _on_onnxruntime(trunk) if runtime == "onnxruntime" else _on_litert(trunk)


def relative_difference(compute: Compute, trunk: Any, images: npt.NDArray[Any]) -> float:
    """Return the largest difference between `compute` and Keras on a few images, relative to Keras's largest feature.

    Raises:
        ModelError: `compute` fails.
    """
    images = images[:_NUM_COMPARED]
    expected = np.asarray(trunk(tf.cast(images, tf.float32), training=False), np.float32)
    try:
        found = compute(images)
    except Exception as e:  # ONNX Runtime's have no class in common
        raise ModelError(
            f"another runtime fails on the frozen layers ({' '.join(str(e).split())[:300]}); use "
            "--set features.runtime=tensorflow"
        ) from e
    difference = np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-30)
    return float(difference) if np.isfinite(found).all() else float("inf")


def version_of(runtime: Runtime) -> str:
    """Return the name and version of the runtime, for the key of its features."""
    if runtime == "onnxruntime":
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"
    if runtime == "litert":
        import ai_edge_litert

        return f"litert {ai_edge_litert.__version__}"
    return f"tensorflow {tf.__version__}"


def _on_onnxruntime(trunk: Any) -> Compute:
    import onnxruntime

    from trainer.features.onnx_graph import INPUT, NotWrittenError, write_onnx

    try:
        content = write_onnx(trunk)
    except NotWrittenError:
        content = _convert_to_onnx(trunk)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def compute(images: npt.NDArray[Any]) -> Array:
        (features,) = session.run(None, {INPUT: images.astype(np.float32)})
        return np.asarray(features, np.float32)

    return compute


def _convert_to_onnx(trunk: Any) -> bytes:
    # Slow to import and to run, and not needed for the common networks.
    import tf2onnx

    from trainer.features.onnx_graph import INPUT, OPSET

    function = tf.function(
        lambda images: trunk(images, training=False),
        input_signature=[tf.TensorSpec([None, *trunk.input_shape[1:]], tf.float32, name=INPUT)],
        autograph=False,
    )
    try:
        model, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=OPSET)
    except (ValueError, RuntimeError) as e:
        raise ModelError(
            f"ONNX Runtime cannot take the frozen layers ({str(e).strip().splitlines()[0]}); use --set "
            "features.runtime=tensorflow"
        ) from e
    content: bytes = model.SerializeToString()
    return content


def _on_litert(trunk: Any) -> Compute:
    """Return a function with an interpreter for each core, each of which takes one image at a time."""
    from ai_edge_litert.interpreter import Interpreter

    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        file.write(_convert_to_tflite(trunk))
        file.flush()
        num_threads = len(os.sched_getaffinity(0))
        with stderr_held_back():
            interpreters = [Interpreter(model_path=file.name, num_threads=1) for _ in range(num_threads)]
            for interpreter in interpreters:
                interpreter.allocate_tensors()
    pool = concurrent.futures.ThreadPoolExecutor(num_threads, "litert")

    def run(interpreter: Any, images: Array) -> list[Array]:
        place, result = (details[0]["index"] for details in _details(interpreter))
        features = []
        for image in images:
            interpreter.set_tensor(place, image[np.newaxis])
            interpreter.invoke()
            features.append(interpreter.get_tensor(result)[0])
        return features

    def compute(images: npt.NDArray[Any]) -> Array:
        parts = np.array_split(images.astype(np.float32), num_threads)
        return np.stack([row for part in pool.map(run, interpreters, parts) for row in part])

    return compute


def _details(interpreter: Any) -> tuple[Any, Any]:
    return interpreter.get_input_details(), interpreter.get_output_details()


def _convert_to_tflite(trunk: Any) -> bytes:
    from trainer.system.private_api.tensorflow_lite import ConverterError

    function = tf.function(
        lambda images: trunk(images, training=False),
        input_signature=[tf.TensorSpec([1, *trunk.input_shape[1:]], tf.float32)],
        autograph=False,
    )
    # Without this, the converter writes a file without weights that answers NaN.
    frozen = convert_variables_to_constants_v2(function.get_concrete_function())
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    try:
        with stderr_held_back():
            content: bytes = converter.convert()
    except ConverterError as e:
        raise ModelError(
            f"LiteRT cannot take the frozen layers ({str(e).strip().splitlines()[0]}); use --set "
            "features.runtime=tensorflow"
        ) from e
    return content
