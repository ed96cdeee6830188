"""MediaPipe reads the labels of a TFLite file, feeds it images, and names the class, without a word from us."""

import ctypes
import importlib
import pathlib
import zipfile
from typing import Any

import numpy as np
import pytest
from digits_classifier import CLASS_NAMES, GEOMETRY, SIGNATURE, SIZE_PX, ListedImages
from exported import Exported

from export.convert.inference_model import InferenceModel, frozen_saved_model
from export.convert.tflite_metadata import with_metadata
from export.convert.to_tflite import convert_to_tflite
from export.files.formats import TFLITE_FLOAT32
from export.runtime.runtimes import TfliteRuntime
from export.runtime.samples import load_images
from trainer.system.private_api.tensorflow_lite import convert_bytearray_to_object

PRECISIONS = ["float32", "float16", "dynamic", "int8"]
# That its package does not bring.
LIBRARIES = ("libEGL.so.1", "libGLESv2.so.2", "libGL.so.1", "libglib-2.0.so.0")


@pytest.fixture(scope="module")
def mediapipe() -> Any:
    for library in LIBRARIES:
        try:
            ctypes.CDLL(library)
        except OSError:
            pytest.skip(f"MediaPipe needs {library}; install it with: scripts/system-packages mediapipe")
    return importlib.import_module("mediapipe")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_mediapipe_classifies_with_the_file_alone(
    mediapipe: Any, exported: Exported, validation: ListedImages, precision: str
) -> None:
    from mediapipe.tasks.python import BaseOptions, vision

    path = exported.directory / f"tflite/digits-{precision}.tflite"
    images = load_images(validation.read(np.arange(8))[0], GEOMETRY)
    expected = TfliteRuntime(path).predict_probabilities(images)
    options = vision.ImageClassifierOptions(BaseOptions(model_asset_path=str(path)), max_results=len(CLASS_NAMES))
    with vision.ImageClassifier.create_from_options(options) as classifier:
        for pixels, probabilities in zip(images, expected, strict=True):
            image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)
            (answer,) = classifier.classify(image).classifications
            scores = {c.category_name: c.score for c in answer.categories}
            found = [scores.get(name, 0.0) for name in CLASS_NAMES]
            np.testing.assert_allclose(found, probabilities, atol=2e-3)


@pytest.mark.parametrize("precision", [*PRECISIONS, "int8x16"])
@pytest.mark.usefixtures("mediapipe")
def test_the_metadata_says_labels_normalisation_and_version(exported: Exported, precision: str) -> None:
    from mediapipe.tasks.metadata import metadata_schema_py_generated as schema

    content = bytearray((exported.directory / f"tflite/digits-{precision}.tflite").read_bytes())
    file = convert_bytearray_to_object(content)
    (entry,) = (m for m in file.metadata if m.name == b"TFLITE_METADATA")
    data = bytes(file.buffers[entry.buffer].data)
    assert schema.ModelMetadata.ModelMetadataBufferHasIdentifier(data, 0)
    metadata = schema.ModelMetadataT.InitFromObj(schema.ModelMetadata.GetRootAs(data, 0))
    assert (metadata.name, metadata.version) == (b"digits", b"3")
    assert SIGNATURE.content_hash().encode() in metadata.description
    (graph,) = metadata.subgraphMetadata
    (images,), (probabilities,) = graph.inputTensorMetadata, graph.outputTensorMetadata
    assert (images.name, probabilities.name) == (b"images", b"probabilities")
    assert images.content.contentProperties.colorSpace == schema.ColorSpaceType.RGB
    (unit,) = images.processUnits
    assert (list(unit.options.mean), list(unit.options.std)) == ([0.0], [1.0])
    assert (list(images.stats.min), list(images.stats.max)) == ([0.0], [255.0])
    (labels,) = probabilities.associatedFiles
    assert (labels.name, labels.type) == (b"labels.txt", schema.AssociatedFileType.TENSOR_AXIS_LABELS)


def test_the_labels_are_a_text_file_that_any_unzip_reads(exported: Exported) -> None:
    for path in sorted((exported.directory / "tflite").iterdir()):
        with zipfile.ZipFile(path) as archive:
            assert archive.read("labels.txt").decode().splitlines() == CLASS_NAMES


def test_the_metadata_changes_no_answer(model: Any, validation: ListedImages, tmp_path: pathlib.Path) -> None:
    with frozen_saved_model(InferenceModel(model, SIGNATURE), SIGNATURE) as directory:
        bare = convert_to_tflite(directory, TFLITE_FLOAT32, np.zeros((0, SIZE_PX, SIZE_PX, 3), np.uint8))
    images = load_images(validation.read(np.arange(4))[0], GEOMETRY)
    answers = []
    for name, content in (("bare", bare), ("described", with_metadata(bare, SIGNATURE, 2))):
        (tmp_path / f"{name}.tflite").write_bytes(content)
        answers.append(TfliteRuntime(tmp_path / f"{name}.tflite").predict_probabilities(images))
    np.testing.assert_array_equal(*answers)
