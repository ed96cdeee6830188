"""Predictions of a run, an export, or one artifact file, for image files."""

import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from export.client_images import read_client_image
from export.parity import ParityReport
from export.predictions import ImagePrediction, most_probable
from export.runtimes import (
    KerasRuntime,
    Probabilities,
    Runtime,
    SavedModelRuntime,
    is_saved_model,
    open_runtime,
)
from export.samples import Pixels, load_images
from export.signature import FILE_NAME as SIGNATURE_FILE
from export.signature import PROBABILITIES, Signature
from trainer.checkpoint import Which, load_classifier
from trainer.data.geometry import Geometry
from trainer.errors import ArtifactError, UsageError
from trainer.run_dir import RunDir

_BATCH_SIZE = 32


class Target:
    """Something that predicts: a runtime, the names of its classes, and how an image becomes its input."""

    def __init__(self, runtime: Runtime, class_names: list[str], geometry: Geometry) -> None:
        self._runtime = runtime
        self._class_names = class_names
        self._geometry = geometry

    def predict_files(self, paths: Sequence[pathlib.Path], top: int) -> list[ImagePrediction]:
        """The `top` most probable classes of each image file.

        Raises:
            UsageError: a file is missing or not an image; it is named, and nothing is predicted.
        """
        encoded = [read_client_image(path) for path in paths]
        images = np.stack([self._load(path, content) for path, content in zip(paths, encoded, strict=True)])
        probabilities = np.concatenate(
            [
                self._predict(encoded[start : start + _BATCH_SIZE], images[start : start + _BATCH_SIZE])
                for start in range(0, len(paths), _BATCH_SIZE)
            ]
        )
        if probabilities.shape[1] != len(self._class_names):
            raise ArtifactError(
                f"the model answers {probabilities.shape[1]} probabilities, but {len(self._class_names)} classes are "
                f"named beside it; use the {SIGNATURE_FILE} that was published with it"
            )
        return [
            ImagePrediction(image=str(path), classes=most_probable(row, self._class_names, top))
            for path, row in zip(paths, probabilities, strict=True)
        ]

    def _load(self, path: pathlib.Path, encoded: bytes) -> Pixels:
        try:
            image: Pixels = load_images([encoded], self._geometry)[0]
        except tf.errors.InvalidArgumentError as e:
            raise UsageError(f"{path} is an image that TensorFlow does not decode: {e.message}") from None
        return image

    def _predict(self, encoded: list[bytes], images: Pixels) -> Probabilities:
        # A SavedModel is asked as its clients ask it.
        if isinstance(self._runtime, SavedModelRuntime):
            probabilities: Probabilities = self._runtime.predict_encoded(encoded)[PROBABILITIES]
            return probabilities
        return self._runtime.predict_probabilities(images)


def open_target(path: pathlib.Path, *, which: Which = "best") -> Target:
    """Opens a run directory, an export, a .tflite or .onnx file, or a SavedModel version directory.

    `which` is the checkpoint of a run. The class names of an artifact come from the `signature.json` of the export
    around it.

    Raises:
        RunError: the run holds no checkpoint.
        ArtifactError: `path` is none of these, or an artifact that no export is around.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; give a run, an export, an artifact file or http://HOST:PORT")
    run = RunDir(path)
    if run.exists():
        info = run.info()
        geometry = Geometry(image_size_px=info.image_size_px, resize=run.config().data.resize)
        return Target(KerasRuntime(load_classifier(run, which=which)), info.class_names, geometry)
    if (path / SIGNATURE_FILE).is_file():
        signature = Signature.load(path)
        artifact = ParityReport.load(path).artifacts()[0]  # the SavedModel where there is one: formats are in order
        return Target(open_runtime(path / artifact.path), signature.class_names, signature.geometry)
    if path.suffix in (".tflite", ".onnx") or is_saved_model(path):
        signature = _find_signature(path)
        return Target(open_runtime(path), signature.class_names, signature.geometry)
    raise ArtifactError(
        f"{path} is not a run, an export, a .tflite or .onnx file or the directory of a SavedModel version"
    )


def _find_signature(artifact: pathlib.Path) -> Signature:
    """The signature of the export that `artifact` lies in: at most three levels up, as the formats are laid out."""
    for directory in artifact.resolve().parents[:3]:
        if (directory / SIGNATURE_FILE).is_file():
            return Signature.load(directory)
    raise ArtifactError(
        f"there is no {SIGNATURE_FILE} beside or above {artifact}, so its classes have no names and its resize is not "
        f"known; keep the file in its export, or copy {SIGNATURE_FILE} from there to {artifact.parent}"
    )
