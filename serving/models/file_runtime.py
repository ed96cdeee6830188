"""Serve the TFLite or ONNX file of an export behind the signatures that its SavedModel has.

The file maps pixels to probabilities; the rest, from image files to labels, is made here as the SavedModel's graph
makes it (export/convert/inference_model.py). The checks of a version hold for it as well, golden answers included.
"""

import pathlib
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from export.convert.image_batch import load_batch
from export.files.checksums import FILE_NAME as CHECKSUMS_FILE
from export.files.checksums import Checksums
from export.files.formats import ONNX, TFLITE_FLOAT32
from export.files.parity import Artifact
from export.files.signature import (
    CLASS_ID,
    IMAGE_BYTES,
    IMAGES,
    LABEL,
    NO_CLASS,
    OPTIONAL_OUTPUTS,
    PREDICTED,
    PROBABILITIES,
    SIGNATURE_IMAGES,
    STATUS,
    STATUS_OK,
    Signature,
)
from export.files.statuses import STATUS_BAD_PIXELS
from export.files.version_proof import verify_files
from export.runtime.runtimes import open_runtime
from serving.models.base_path import export_of
from serving.models.servable import Runtime
from serving.models.signature_defs import signature_spec
from serving.protocol.status import Code, RequestError, invalid
from serving.protocol.tensors import Array, SignatureSpec, describe_misfits
from trainer.errors import ArtifactError
from trainer.system.names import parse_version
from trainer.system.private_api.tensorflow_graph import SavedModel

FileRuntimeName = Literal["tflite", "onnx"]
# The float32 file: its answers are those of the SavedModel to the last digits.
_FORMATS = {"tflite": TFLITE_FLOAT32, "onnx": ONNX}
# What the Open Inference Protocol calls them; its specification has no name for TFLite, only the form of names.
_PLATFORMS = {"tflite": "tensorflow_tflite", "onnx": "onnx_onnxv1"}
_DTYPES = {"string": tf.string, "float32": tf.float32, "int64": tf.int64, "bool": tf.bool}
_PREDICT_METHOD = "tensorflow/serving/predict"


def loader(runtime: FileRuntimeName) -> Callable[[pathlib.Path], Runtime]:
    """Return what loads, for a version of an export, the file of `runtime` in its place."""

    def load(path: pathlib.Path) -> Runtime:
        return FileRuntime(path, runtime)

    return load


class FileRuntime:
    """A float32 TFLite or ONNX file of an export in memory. Thread-safe.

    Attributes:
        platform: what the Open Inference Protocol calls the format.
        signature_defs: as the SavedModel has them, without outputs that the file lacks.
        signatures: their inputs and outputs, by name.
    """

    def __init__(self, version: pathlib.Path, runtime: FileRuntimeName) -> None:
        """Load the file of the export in which the SavedModel `version` lies.

        Raises:
            ArtifactError: it lies in none, or the export holds no such file.
            ParityError: the file was changed.
        """
        export_dir = export_of(version)
        if export_dir is None:
            raise ArtifactError(
                f"{version} does not lie in an export, so there is no file for --runtime {runtime}; serve the export "
                "itself, or leave --runtime out"
            )
        self._signature = Signature.load(export_dir)
        number = parse_version(version.resolve().name)
        assert number is not None, "versions of a base path are numbers"
        name = Artifact.of(_FORMATS[runtime], self._signature, number).path
        checksums = Checksums.load(export_dir)
        if name not in checksums.files:
            raise ArtifactError(
                f"{export_dir} holds no {name}; export it with --formats {_FORMATS[runtime].name} among others, or "
                "leave --runtime out"
            )
        verify_files(export_dir, {name: checksums.files[name]}, said_by=CHECKSUMS_FILE)
        self.platform = _PLATFORMS[runtime]
        self._runtime = open_runtime(export_dir / name)
        # LiteRT's interpreter has one set of buffers; ONNX Runtime may be called at the same time.
        self._one_at_a_time: Any = threading.Lock() if runtime == "tflite" else threading.Semaphore(2**16)
        self.signature_defs: Mapping[str, Any] = _signature_defs(self._signature)
        self.signatures: Mapping[str, SignatureSpec] = {
            name: signature_spec(name, proto) for name, proto in self.signature_defs.items()
        }
        geometry = self._signature.geometry
        self._decode = tf.function(
            lambda encoded: load_batch(encoded, geometry), input_signature=[tf.TensorSpec([None], tf.string)]
        )

    def run(self, signature: SignatureSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a signature as `SavedModelRuntime.run` does. Raises RequestError for inputs that it does not take."""
        misfits = describe_misfits(signature, inputs)
        if misfits:
            raise invalid(f"the shape of an input is wrong{misfits}")
        if signature.name == SIGNATURE_IMAGES:
            images = inputs[IMAGES]
            # Comparisons with NaN are false.
            is_right: Array = np.asarray(((images >= 0) & (images <= 255)).all(axis=(1, 2, 3)))
            images = np.where(is_right[:, None, None, None], images, np.float32(0))
            status = np.where(is_right, STATUS_OK.encode(), STATUS_BAD_PIXELS.encode()).astype(object)
        else:
            images, status = (part.numpy() for part in self._decode(tf.constant(list(inputs[IMAGE_BYTES]), tf.string)))
        return {**self._answer(images, status == STATUS_OK.encode()), STATUS: status}

    def _answer(self, images: Array, is_ok: Array) -> dict[str, Array]:
        if not len(images):
            raise invalid("the request holds no image")
        try:
            with self._one_at_a_time:
                probabilities = self._runtime.predict_probabilities(images)
        except ArtifactError as e:
            raise RequestError(Code.INTERNAL, str(e)) from None
        names = np.array([name.encode() for name in self._signature.class_names], object)
        class_ids = probabilities.argmax(axis=-1).astype(np.int64)
        outputs = {
            PROBABILITIES: np.where(is_ok[:, None], probabilities, np.float32(0)),
            CLASS_ID: np.where(is_ok, class_ids, NO_CLASS),
            LABEL: np.where(is_ok, names[class_ids], b"").astype(object),
        }
        if self._signature.thresholds is not None:
            thresholds = np.array(self._signature.thresholds, np.float32)
            outputs[PREDICTED] = (probabilities >= thresholds) & is_ok[:, None]
        return outputs


def _signature_defs(signature: Signature) -> dict[str, Any]:
    def fill(info: Any, name: str, dtype: str, shape: list[int | None]) -> None:
        info.name = f"{name}:0"
        info.dtype = _DTYPES[dtype].as_datatype_enum
        info.tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())

    found = SavedModel().meta_graphs.add().signature_def
    for name, tensor in signature.inputs.items():
        proto = found[name]
        proto.method_name = _PREDICT_METHOD
        fill(proto.inputs[tensor.name], tensor.name, tensor.dtype, tensor.shape)
        for output in signature.outputs:
            if name in output.signatures and output.name not in OPTIONAL_OUTPUTS:
                fill(proto.outputs[output.name], output.name, output.dtype, output.shape)
    return dict(found)
