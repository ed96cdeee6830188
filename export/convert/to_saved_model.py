"""Write a SavedModel version for TensorFlow Serving: two named signatures and warm-up requests.

`serving_default` takes `image_bytes` (encoded images of any size), `images` takes pixels at the model's size; the
outputs of both are in `signature.json`.

The weights stay variables: both signatures share them, and neither the 2 GB limit of a graph file nor a second copy
in the server's memory matters. TensorFlow folds batch normalisation into constants only, so it is not folded here: for
EfficientNet-Lite0 at 224 px on two cores folding gained a tenth (85 images/s against 76). The TFLite and ONNX
converters, which get constants, fold it. XLA is off, as in TensorFlow Serving.
"""

import hashlib
import pathlib

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from export.convert.inference_model import WITHOUT_GRADIENTS, InferenceModel
from export.files.signature import IMAGE_BYTES, IMAGES, SIGNATURE_IMAGE_BYTES, SIGNATURE_IMAGES, Signature
from export.files.version_proof import WARMUP_FILE
from export.runtime.runtimes import SavedModelRuntime
from export.runtime.samples import Batch
from trainer.errors import ExportError
from trainer.system.private_api.tensorflow_graph import FingerprintDef

_FINGERPRINT_FILE = "fingerprint.pb"
# Batch sizes of the warm-up requests: a single image, and a small batch.
_WARMUP_BATCH_SIZES = (1, 4)
NUM_WARMUP_IMAGES = max(_WARMUP_BATCH_SIZES)


def write_saved_model(inference: InferenceModel, signature: Signature, directory: pathlib.Path, warmup: Batch) -> None:
    """Write one version to `directory` and replay its warm-up requests: a bad one would stop the server.

    `warmup` are NUM_WARMUP_IMAGES real images; fewer make smaller requests.

    Raises:
        ExportError: a warm-up request fails.
    """
    tf.saved_model.save(
        inference,
        str(directory),
        signatures={SIGNATURE_IMAGE_BYTES: inference.image_bytes, SIGNATURE_IMAGES: inference.images},
        options=WITHOUT_GRADIENTS,
    )
    _make_fingerprint_reproducible(directory / _FINGERPRINT_FILE)
    warmup_file = directory / WARMUP_FILE
    warmup_file.parent.mkdir()
    write_warmup_requests(warmup_file, signature, warmup)
    replay_warmup_requests(directory)


def replay_warmup_requests(directory: pathlib.Path) -> int:
    """Run every warm-up request of the version in `directory`, as TensorFlow Serving will, and return their number.

    Raises:
        ExportError: one fails, or is answered with another number of images.
    """
    runtime = SavedModelRuntime(directory)
    num_requests = 0
    for record in tf.data.TFRecordDataset(str(directory / WARMUP_FILE)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        try:
            outputs = runtime.call(request.model_spec.signature_name, inputs)
        except tf.errors.OpError as e:
            raise ExportError(f"warm-up request {num_requests} of {directory} is not answered: {e.message}") from e
        num_images = len(next(iter(inputs.values())))
        if any(len(values) != num_images for values in outputs.values()):
            raise ExportError(
                f"warm-up request {num_requests} of {directory} sent {num_images} images, got another number"
            )
        num_requests += 1
    return num_requests


def count_warmup_requests(directory: pathlib.Path) -> int:
    """Return the number of the warm-up requests of the version in `directory`."""
    return sum(1 for _ in tf.data.TFRecordDataset(str(directory / WARMUP_FILE)))


def write_warmup_requests(path: pathlib.Path, signature: Signature, warmup: Batch) -> None:
    """Write the warm-up requests: each signature, with each batch size."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for batch_size in _WARMUP_BATCH_SIZES:
            encoded = np.array(warmup.encoded[:batch_size], object)
            images = warmup.images[:batch_size].astype(np.float32)
            for name, tensor_name, values in (
                (SIGNATURE_IMAGE_BYTES, IMAGE_BYTES, encoded),
                (SIGNATURE_IMAGES, IMAGES, images),
            ):
                request = predict_pb2.PredictRequest()
                request.model_spec.name = signature.model_name
                request.model_spec.signature_name = name
                request.inputs[tensor_name].CopyFrom(tf.make_tensor_proto(values))
                log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
                writer.write(log.SerializeToString(deterministic=True))


def _make_fingerprint_reproducible(path: pathlib.Path) -> None:
    """Replace the random identifier in `fingerprint.pb`, the only difference between two equal exports.

    The new one is derived from the hashes beside it (graph, signatures, weights), so that different models differ.
    """
    fingerprint = FingerprintDef.FromString(path.read_bytes())
    fingerprint.uuid = ""
    digest = hashlib.sha256(fingerprint.SerializeToString(deterministic=True)).digest()
    fingerprint.uuid = str(int.from_bytes(digest[:16], "big"))
    path.write_bytes(fingerprint.SerializeToString(deterministic=True))
