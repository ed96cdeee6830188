"""Run the warm-up requests of a version before it is available, so that no client waits for its first run.

They are TensorFlow Serving's: PredictionLog records in `assets.extra/tf_serving_warmup_requests`
(tensorflow_serving/servables/tensorflow/saved_model_warmup_util.cc). One that fails keeps the version out.
"""

import pathlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from export.files.version_proof import WARMUP_FILE
from serving.models.servable import DEFAULT_SIGNATURE, Runtime
from serving.protocol.status import Code, RequestError, invalid
from serving.protocol.tensors import Array

# kMaxNumRecords.
_MAX_NUM_RECORDS: Final = 1000


def warm_up(path: pathlib.Path, runtime: Runtime) -> int:
    """Run every warm-up request, and return how many there were; 0 without a file.

    Raises:
        RequestError: the file is damaged, or a request fails.
    """
    num_records = 0
    for record in _read_records(path / WARMUP_FILE):
        if num_records == _MAX_NUM_RECORDS:
            raise invalid(f"Number of warmup records exceeds the maximum ({_MAX_NUM_RECORDS}) at {path / WARMUP_FILE}")
        try:
            _run(record, runtime)
        except RequestError as e:
            raise RequestError(e.code, f"warm-up request {num_records} of {path} fails: {e.message}") from None
        num_records += 1
    return num_records


def _read_records(file: pathlib.Path) -> Iterator[bytes]:
    import tensorflow as tf

    if not file.exists():
        return
    try:
        yield from tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    except tf.errors.DataLossError as e:
        raise RequestError(
            Code.DATA_LOSS, f"{file} is damaged ({e.message}). Please verify your warmup data is in TFRecord format."
        ) from None


def _run(record: bytes, runtime: Runtime) -> None:
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis import prediction_log_pb2

    try:
        log = prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError:
        raise invalid("Failed to parse warmup record") from None
    kind = log.WhichOneof("log_type")
    if kind not in ("predict_log", "classify_log", "regress_log"):
        raise RequestError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
    request = getattr(log, kind).request
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    if name not in runtime.signatures:
        raise invalid(f'Serving signature name: "{name}" not found in signature def')
    signature = runtime.signatures[name]
    inputs = _tensors_of(request) if kind == "predict_log" else _examples_of(request, next(iter(signature.inputs)))
    if set(inputs) != set(signature.inputs):
        raise invalid(f"its inputs are {sorted(inputs)}, those of signature {name} {sorted(signature.inputs)}")
    runtime.run(signature, inputs)


def _tensors_of(request: Any) -> dict[str, Array]:
    import tensorflow as tf

    return {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}


def _examples_of(request: Any, input_name: str) -> dict[str, Array]:
    # An ExampleListWithContext merges its context into each example; neither is made by any of our exports.
    if request.input.WhichOneof("kind") != "example_list":
        raise RequestError(Code.UNIMPLEMENTED, "Unsupported input kind for warmup; use example_list")
    examples = [example.SerializeToString() for example in request.input.example_list.examples]
    return {input_name: np.array(examples, object)}
