"""Run every artifact in its users' runtime, behind one small interface.

    KerasRuntime        the model itself, in TensorFlow: the reference
    SavedModelRuntime   TensorFlow, the library in TensorFlow Serving
    TfliteRuntime       LiteRT (ai-edge-litert), as on phones
    OnnxRuntime         ONNX Runtime, on the CPU

All of them take pixels 0 to 255 at the model's size, [n, size, size, 3], uint8 or float32.
"""

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from export.files.signature import (
    IMAGE_BYTES,
    IMAGES,
    PROBABILITIES,
    SIGNATURE_IMAGE_BYTES,
    SIGNATURE_IMAGES,
    TFLITE_SIGNATURE,
)
from trainer.config.training import ModelTask
from trainer.errors import ArtifactError
from trainer.system.tf_runtime import stderr_held_back

Images = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]


class Runtime(Protocol):
    """Something that predicts; `name` is the runtime with its version."""

    name: str

    def predict_probabilities(self, images: Images) -> Probabilities:
        """Return probabilities, [n, num_classes], for pixels, [n, size, size, 3].

        Raises ArtifactError if the runtime cannot run the artifact.
        """


class KerasRuntime:
    """A Keras classifier with logits as output; `task` and `temperature` are those of a `Signature`."""

    def __init__(self, model: Any, *, task: ModelTask = "single_label", temperature: float | None = None) -> None:
        import tensorflow as tf

        activation = tf.sigmoid if task == "multi_label" else tf.nn.softmax
        self.name = f"Keras on TensorFlow {tf.__version__}"
        pixels = tf.TensorSpec([None, *model.input_shape[1:]], tf.float32)
        self._predict = tf.function(
            lambda images: activation(model(images, training=False) / (temperature or 1.0)), [pixels]
        )

    def predict_probabilities(self, images: Images) -> Probabilities:
        probabilities: Probabilities = self._predict(images.astype(np.float32)).numpy()
        return probabilities


class CachedRuntime:
    """A runtime that caches the answers of another by batch, so that repeated comparisons cost nothing."""

    def __init__(self, runtime: Runtime) -> None:
        self.name = runtime.name
        self._runtime = runtime
        self._answers: dict[bytes, Probabilities] = {}

    def predict_probabilities(self, images: Images) -> Probabilities:
        key = hashlib.sha256(images.tobytes()).digest()
        if key not in self._answers:
            self._answers[key] = self._runtime.predict_probabilities(images)
        return self._answers[key]


class SavedModelRuntime:
    """One version directory of a SavedModel, called through its named signatures."""

    def __init__(self, directory: pathlib.Path) -> None:
        """Load the SavedModel. Raises ArtifactError if it lacks the signatures of an export."""
        import tensorflow as tf

        try:
            self._loaded = tf.saved_model.load(str(directory))
        except (OSError, ValueError, tf.errors.OpError) as e:
            raise ArtifactError(f"{directory} does not load as a SavedModel: {_first_line(e)}") from None
        self.name = f"TensorFlow {tf.__version__}"
        self._functions = self._loaded.signatures
        missing = {SIGNATURE_IMAGE_BYTES, SIGNATURE_IMAGES} - set(self._functions)
        if missing:
            raise ArtifactError(
                f"{directory} has no signature {', '.join(sorted(missing))}, so it is not a SavedModel of "
                "trainer export; its signatures are " + (", ".join(self._functions) or "none")
            )

    def call(self, signature_name: str, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Return all outputs of one signature by name. Raises tf.errors.OpError if the graph fails."""
        import tensorflow as tf

        outputs = self._functions[signature_name](**{name: tf.constant(values) for name, values in inputs.items()})
        return {name: values.numpy() for name, values in outputs.items()}

    def predict_images(self, images: Images) -> Arrays:
        """Return all outputs for pixels."""
        return self._answer(SIGNATURE_IMAGES, IMAGES, images.astype(np.float32))

    def predict_encoded(self, encoded: list[bytes]) -> Arrays:
        """Return all outputs for encoded images of any size. Raises ArtifactError if the graph fails."""
        return self._answer(SIGNATURE_IMAGE_BYTES, IMAGE_BYTES, np.array(encoded, object))

    def predict_probabilities(self, images: Images) -> Probabilities:
        return self.predict_images(images)[PROBABILITIES]

    def _answer(self, signature_name: str, input_name: str, values: npt.NDArray[Any]) -> Arrays:
        import tensorflow as tf

        try:
            return self.call(signature_name, {input_name: values})
        except tf.errors.OpError as e:
            raise ArtifactError(f"the signature {signature_name} fails: {_first_line(e)}") from None


class TfliteRuntime:
    """A TFLite file; it takes one image at a time, and quantised inputs and outputs are converted."""

    def __init__(self, path: pathlib.Path, *, num_threads: int | None = None) -> None:
        """Load the file; `num_threads` defaults to the available cores.

        Raises:
            ArtifactError: the file is missing or broken, or lacks the signature of an export.
        """
        import ai_edge_litert
        from ai_edge_litert.interpreter import Interpreter

        content = _read_file(path)
        try:
            # LiteRT reports its delegate on standard error, and no setting silences it.
            with stderr_held_back():
                interpreter = Interpreter(model_content=content, num_threads=num_threads or num_cores())
                interpreter.allocate_tensors()
            self._run = interpreter.get_signature_runner(TFLITE_SIGNATURE)
            self._input = self._run.get_input_details()[IMAGES]
            self._output = self._run.get_output_details()[PROBABILITIES]
        except (ValueError, RuntimeError, KeyError) as e:
            raise ArtifactError(
                f"{path} does not load in LiteRT with a signature {TFLITE_SIGNATURE!r} from {IMAGES!r} to "
                f"{PROBABILITIES!r}, so it is not a file of trainer export, or it is broken: {_first_line(e)}"
            ) from None
        self._path = path
        self.name = f"LiteRT {ai_edge_litert.__version__}"

    def predict_probabilities(self, images: Images) -> Probabilities:
        quantised = _quantise(images, self._input)
        try:
            answers = [self._run(**{IMAGES: quantised[i : i + 1]})[PROBABILITIES] for i in range(len(quantised))]
        except (ValueError, RuntimeError) as e:
            raise ArtifactError(f"{self._path} does not run in LiteRT: {_first_line(e)}") from None
        return _dequantise(np.concatenate(answers), self._output)


class OnnxRuntime:
    """An ONNX file on the CPU."""

    def __init__(self, path: pathlib.Path) -> None:
        """Load the file. Raises ArtifactError if it is missing or broken, or lacks the tensors of an export."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_cores()
        # Threads that spin after a batch would slow down the runtime that is timed next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._path = path
        self._errors = onnx_errors()
        try:
            self._session = onnxruntime.InferenceSession(_read_file(path), options, providers=["CPUExecutionProvider"])
        except self._errors as e:
            raise ArtifactError(f"{path} does not load in ONNX Runtime: {_first_line(e)}") from None
        inputs = [i.name for i in self._session.get_inputs()]
        outputs = [o.name for o in self._session.get_outputs()]
        if inputs != [IMAGES] or PROBABILITIES not in outputs:
            raise ArtifactError(
                f"{path} maps {', '.join(inputs)} to {', '.join(outputs)} and not {IMAGES} to "
                f"{PROBABILITIES}, so it is not a file of trainer export"
            )
        self.name = f"ONNX Runtime {onnxruntime.__version__}"

    def predict_probabilities(self, images: Images) -> Probabilities:
        try:
            (probabilities,) = self._session.run([PROBABILITIES], {IMAGES: images.astype(np.float32)})
        except self._errors as e:
            raise ArtifactError(f"{self._path} does not run in ONNX Runtime: {_first_line(e)}") from None
        answer: Probabilities = probabilities
        return answer


def open_runtime(path: pathlib.Path) -> SavedModelRuntime | TfliteRuntime | OnnxRuntime:
    """Open an artifact: a .tflite or .onnx file, or a SavedModel version directory.

    Raises:
        ArtifactError: it is none of these, or its runtime rejects it.
    """
    if path.suffix == ".tflite":
        return TfliteRuntime(path)
    if path.suffix == ".onnx":
        return OnnxRuntime(path)
    if is_saved_model(path):
        return SavedModelRuntime(path)
    raise ArtifactError(f"{path} is not an artifact; expected a .tflite or .onnx file, or a SavedModel directory")


def is_saved_model(path: pathlib.Path) -> bool:
    return (path / "saved_model.pb").is_file()


def num_cores() -> int:
    """Return the number of cores that this process may use (a container may have fewer than the machine)."""
    return len(os.sched_getaffinity(0))


def _quantise(images: Images, tensor: Mapping[str, Any]) -> npt.NDArray[Any]:
    if tensor["dtype"] is np.float32:
        return images.astype(np.float32)
    scale, zero_point = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    steps = np.round(images.astype(np.float32) / scale) + zero_point
    quantised: npt.NDArray[Any] = np.clip(steps, limits.min, limits.max).astype(tensor["dtype"])
    return quantised


def _dequantise(values: npt.NDArray[Any], tensor: Mapping[str, Any]) -> Probabilities:
    if tensor["dtype"] is np.float32:
        return values.astype(np.float32)
    scale, zero_point = tensor["quantization"]
    probabilities: Probabilities = (values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return probabilities


def _read_file(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise ArtifactError(f"{path} cannot be read: {e.strerror}") from None


def onnx_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that ONNX Runtime raises for a file that it cannot run."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    # The binding's errors have no common base but Exception.
    found = [e for e in vars(state).values() if isinstance(e, type) and issubclass(e, Exception)]
    return (*found, ValueError, RuntimeError)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
