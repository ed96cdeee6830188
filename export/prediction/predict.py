"""Predict image files with a run, an export, or one artifact file."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from export.convert.image_batch import load_batch
from export.files.parity import ParityReport
from export.files.signature import FILE_NAME as SIGNATURE_FILE
from export.files.signature import PROBABILITIES, STATUS, STATUS_OK, Signature
from export.gate.decisions import decide
from export.pipeline.run_tuning import tuning_to_apply
from export.prediction.predictions import ImagePrediction, describe_status, most_probable
from export.runtime.client_images import ClientImage, read_client_images
from export.runtime.runtimes import (
    KerasRuntime,
    Probabilities,
    Runtime,
    SavedModelRuntime,
    is_saved_model,
    open_runtime,
)
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.storage import parse_path
from trainer.data.decode.geometry import Geometry
from trainer.errors import ArtifactError, DataError
from trainer.run.checkpoint_store import Which
from trainer.run.load_classifier import load_classifier
from trainer.run.run_dir import RunDir, RunInfo

_BATCH_SIZE = 32
# A run's model has no serving name.
_UNNAMED = "run"


class Target:
    """A model to predict with: a runtime, class names, and how an image becomes its input.

    `thresholds` are those of a multi-label model, None for others; `sample_bits` is as in `Signature`.
    """

    def __init__(
        self,
        runtime: Runtime,
        class_names: list[str],
        geometry: Geometry,
        thresholds: Sequence[float] | None = None,
        sample_bits: int | None = None,
    ) -> None:
        self._runtime = runtime
        self._class_names = class_names
        self._geometry = geometry
        self._thresholds = thresholds
        self._sample_bits = sample_bits
        # Traced once: tracing takes longer than a batch.
        self._load = tf.function(lambda encoded: load_batch(encoded, geometry), [tf.TensorSpec([None], tf.string)])

    @classmethod
    def of_signature(cls, runtime: Runtime, signature: Signature) -> "Target":
        return cls(runtime, signature.class_names, signature.geometry, signature.thresholds, signature.sample_bits)

    def predict_files(self, paths: Sequence[pathlib.Path], top: int) -> list[ImagePrediction]:
        """Return the `top` most probable classes of each image file, or its error.

        Raises:
            UsageError: a file cannot be read.
        """
        images = read_client_images(paths, sample_bits=self._sample_bits)
        found = {image.path: ImagePrediction(image=str(image.path), classes=[], error=image.error) for image in images}
        good = [image for image in images if image.error is None]
        for start in range(0, len(good), _BATCH_SIZE):
            batch = good[start : start + _BATCH_SIZE]
            found.update({p.path: self._describe(p, top) for p in self._predict(batch)})
        return [found[path] for path in paths]

    def _describe(self, prediction: "_Prediction", top: int) -> ImagePrediction:
        image, probabilities = str(prediction.path), prediction.probabilities
        if prediction.error is not None:
            return ImagePrediction(image=image, classes=[], error=prediction.error)
        if len(probabilities) != len(self._class_names):
            raise ArtifactError(
                f"the model answers {len(probabilities)} probabilities, but {len(self._class_names)} classes are "
                f"named beside it; use the {SIGNATURE_FILE} that was published with it"
            )
        predicted = None if self._thresholds is None else decide(probabilities, self._thresholds)
        return ImagePrediction(image=image, classes=most_probable(probabilities, self._class_names, top, predicted))

    def _predict(self, images: Sequence[ClientImage]) -> "list[_Prediction]":
        # A SavedModel is called as its clients call it.
        if isinstance(self._runtime, SavedModelRuntime):
            outputs = self._runtime.predict_encoded([image.content for image in images])
            probabilities, statuses = outputs[PROBABILITIES], [status.decode() for status in outputs[STATUS]]
        else:
            pixels, found = self._load(tf.constant([image.content for image in images]))
            probabilities = self._runtime.predict_probabilities(pixels.numpy())
            statuses = [status.decode() for status in found.numpy()]
        return [
            _Prediction(image.path, row, None if status == STATUS_OK else describe_status(status))
            for image, row, status in zip(images, probabilities, statuses, strict=True)
        ]


class _Prediction(NamedTuple):
    path: pathlib.Path
    probabilities: Probabilities
    error: str | None


def open_target(path: pathlib.Path, *, which: Which = "best") -> Target:
    """Open a run directory, an export, a .tflite or .onnx file, or a SavedModel version directory.

    `which` is the checkpoint of a run. The class names of an artifact come from the `signature.json` of its export.

    Raises:
        RunError: the run holds no checkpoint.
        ArtifactError: `path` is none of these, or an artifact outside an export.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; give a run, an export, an artifact file or http://HOST:PORT")
    run = RunDir(path)
    if run.exists():
        info = run.info()
        geometry = Geometry(image_size_px=info.image_size_px, resize=run.config().data.resize)
        tuning = tuning_to_apply(run, which=which, weights="auto", calibrate=None)
        # The signature that an export of this run would have.
        signature = Signature.of_classifier(
            model_name=_UNNAMED,
            class_names=info.class_names,
            geometry=geometry,
            task=info.task,
            sample_bits=_sample_bits_of(info),
            **tuning._asdict(),
        )
        runtime = KerasRuntime(load_classifier(run, which=which), task=info.task, temperature=tuning.temperature)
        return Target.of_signature(runtime, signature)
    if (path / SIGNATURE_FILE).is_file():
        signature = Signature.load(path)
        artifact = ParityReport.load(path).artifacts()[0]  # in the order of formats: the SavedModel if there is one
        return Target.of_signature(open_runtime(path / artifact.path), signature)
    if path.suffix in (".tflite", ".onnx") or is_saved_model(path):
        signature = _find_signature(path)
        return Target.of_signature(open_runtime(path), signature)
    raise ArtifactError(
        f"{path} is not a run, an export, a .tflite or .onnx file or the directory of a SavedModel version"
    )


def _sample_bits_of(info: RunInfo) -> int | None:
    """Return the dataset's `sample_bits`; None if the dataset is gone, so that ambiguous files are errors."""
    try:
        return Manifest.load(parse_path(info.dataset_dir)).sample_bits
    except DataError:
        return None


def _find_signature(artifact: pathlib.Path) -> Signature:
    """Load the signature of the export around `artifact`, at most three levels up."""
    for directory in artifact.resolve().parents[:3]:
        if (directory / SIGNATURE_FILE).is_file():
            return Signature.load(directory)
    raise ArtifactError(
        f"there is no {SIGNATURE_FILE} beside or above {artifact}, so its class names and resize mode are not "
        f"known; keep the file in its export, or copy {SIGNATURE_FILE} from there to {artifact.parent}"
    )
