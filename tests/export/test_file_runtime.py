"""The float32 TFLite and ONNX file of an export, served behind the signatures of its SavedModel."""

import pathlib

import numpy as np
import pytest
from exported import Exported

from export.files.signature import CLASS_ID, IMAGE_BYTES, IMAGES, LABEL, PROBABILITIES, SIGNATURE_IMAGE_BYTES, STATUS
from export.gate.golden import Golden
from serving.models.file_runtime import FileRuntime, FileRuntimeName
from serving.models.saved_model import SavedModelRuntime
from serving.protocol.status import RequestError
from trainer.errors import ArtifactError, ParityError

RUNTIMES: list[FileRuntimeName] = ["tflite", "onnx"]
VERSION = pathlib.Path("saved_model", "digits", "3")


@pytest.fixture(scope="module")
def golden(exported: Exported) -> Golden:
    return Golden.load(exported.directory)


@pytest.mark.parametrize("name", RUNTIMES)
def test_answers_are_those_of_the_savedmodel_for_good_and_bad_images(
    exported: Exported, golden: Golden, name: FileRuntimeName
) -> None:
    reference, runtime = (
        SavedModelRuntime(exported.directory / VERSION),
        FileRuntime(exported.directory / VERSION, name),
    )
    pixels = golden.batch.images.astype(np.float32)
    pixels[3, 0, 0, 0], pixels[5, 1, 1, 1] = np.nan, 256.0
    encoded = np.array([*golden.batch.encoded[:4], b"no image", golden.batch.encoded[0][:30]], object)
    for signature, inputs in ((IMAGES, {IMAGES: pixels}), (SIGNATURE_IMAGE_BYTES, {IMAGE_BYTES: encoded})):
        expected = reference.run(reference.signatures[signature], inputs)
        found = runtime.run(runtime.signatures[signature], inputs)
        assert set(found) == set(expected)
        for output in (CLASS_ID, LABEL, STATUS):
            assert found[output].tolist() == expected[output].tolist()
        assert len(set(found[STATUS])) > 1
        np.testing.assert_allclose(found[PROBABILITIES], expected[PROBABILITIES], atol=1e-5)
        assert {n: a.dtype for n, a in found.items()} == {n: a.dtype for n, a in expected.items()}


@pytest.mark.parametrize("name", RUNTIMES)
def test_metadata_is_that_of_the_savedmodel(exported: Exported, name: FileRuntimeName) -> None:
    reference, runtime = (
        SavedModelRuntime(exported.directory / VERSION),
        FileRuntime(exported.directory / VERSION, name),
    )
    for signature, spec in runtime.signatures.items():
        wanted = reference.signatures[signature]
        assert (spec.inputs, spec.method_name) == (wanted.inputs, wanted.method_name)
        assert {n: o.dtype for n, o in spec.outputs.items()} == {n: o.dtype for n, o in wanted.outputs.items()}
    # As the Open Inference Protocol's metadata has them.
    assert (reference.platform, runtime.platform) == (
        "tensorflow_savedmodel",
        {"tflite": "tensorflow_tflite", "onnx": "onnx_onnxv1"}[name],
    )


def test_pixels_of_another_size_and_no_image_are_refused(exported: Exported) -> None:
    runtime = FileRuntime(exported.directory / VERSION, "onnx")
    for images, told in ((np.zeros((1, 2, 2, 3)), "has shape .1, 2, 2, 3., expected"), (None, "holds no image")):
        size = runtime.signatures[IMAGES].inputs[IMAGES].shape
        assert size is not None
        given = np.zeros((0, *size[1:])) if images is None else images
        with pytest.raises(RequestError, match=told):
            runtime.run(runtime.signatures[IMAGES], {IMAGES: given.astype(np.float32)})


def test_a_file_that_is_missing_or_changed_is_named(copy_of_export: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (file,) = (copy_of_export / "onnx").glob("digits.onnx")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ParityError, match=r"digits\.onnx"):
        FileRuntime(copy_of_export / VERSION, "onnx")
    (copy_of_export / VERSION).rename(tmp_path / "3")
    with pytest.raises(ArtifactError, match=r"does not lie in an export.*leave --runtime out"):
        FileRuntime(tmp_path / "3", "onnx")
