"""Predictions from a run, an export and each kind of artifact file, for image files as they come from people."""

import io
import pathlib
import shutil
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from digits_classifier import CLASS_NAMES, GEOMETRY, ListedImages
from exported import Exported

from export.files.formats import FORMATS
from export.files.signature import Signature
from export.prediction.predict import open_target
from export.prediction.predictions import most_probable, predict_on_server, raise_on_errors
from export.runtime.client_images import read_client_images
from trainer.errors import ArtifactError, TrainerError, UsageError

pytestmark = pytest.mark.slow

NUM_IMAGES = 12


@pytest.fixture(scope="session")
def image_files(validation: ListedImages, tmp_path_factory: pytest.TempPathFactory) -> list[pathlib.Path]:
    directory = tmp_path_factory.mktemp("images")
    encoded, _ = validation.read(np.arange(NUM_IMAGES))
    for i, content in enumerate(encoded):
        (directory / f"{i}.png").write_bytes(content)
    return [directory / f"{i}.png" for i in range(NUM_IMAGES)]


@pytest.mark.parametrize(
    "target",
    [
        ".",
        "saved_model/digits/3",
        "saved_model-bfloat16/digits/3",
        "tflite/digits-float32.tflite",
        "tflite/digits-float16.tflite",
        "tflite/digits-dynamic.tflite",
        "tflite/digits-int8.tflite",
        "tflite/digits-int8x16.tflite",
        "onnx/digits.onnx",
        "onnx/digits-float16.onnx",
        "onnx/digits-dynamic.onnx",
        "onnx/digits-int8.onnx",
        "onnx/digits-int8x16.onnx",
    ],
)
def test_an_export_and_each_of_its_artifacts_predict_alike(
    exported: Exported, validation: ListedImages, image_files: list[pathlib.Path], target: str
) -> None:
    predictions = open_target(exported.directory / target).predict_files(image_files, top=3)
    best = [p.classes[0] for p in predictions]
    _, class_ids = validation.read(np.arange(NUM_IMAGES))
    assert np.mean([c.class_id for c in best] == class_ids) >= 0.9
    assert [c.label for c in best] == [CLASS_NAMES[c.class_id] for c in best]
    assert [p.image for p in predictions] == [str(path) for path in image_files]
    assert all(len(p.classes) == 3 for p in predictions)
    assert all(p.classes[0].probability >= p.classes[1].probability >= p.classes[2].probability for p in predictions)


def test_more_classes_than_there_are_gives_all(exported: Exported, image_files: list[pathlib.Path]) -> None:
    (prediction,) = open_target(exported.directory / "onnx/digits.onnx").predict_files(image_files[:1], top=99)
    assert sorted(c.class_id for c in prediction.classes) == list(range(10))
    assert sum(c.probability for c in prediction.classes) == pytest.approx(1, abs=1e-5)


def test_a_rotated_photograph_is_turned_upright(
    exported: Exported, image_files: list[pathlib.Path], tmp_path: pathlib.Path
) -> None:
    upright = PIL.Image.open(image_files[0])
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    rotated = tmp_path / "rotated.png"
    upright.transpose(PIL.Image.Transpose.ROTATE_90).save(rotated, exif=exif)
    upright.close()
    target = open_target(exported.directory)
    first, second = target.predict_files([image_files[0], rotated], top=10)
    assert [c.class_id for c in first.classes] == [c.class_id for c in second.classes]
    assert [c.probability for c in first.classes] == pytest.approx([c.probability for c in second.classes], abs=1e-6)


def _shape_in_alpha_alone(image: PIL.Image.Image) -> tuple[PIL.Image.Image, str, dict[str, Any]]:
    shape = PIL.Image.new("LA", image.size)
    shape.putalpha(PIL.ImageOps.invert(image.convert("L")))
    return shape, "PNG", {}


def _in_16_bits(image: PIL.Image.Image) -> tuple[PIL.Image.Image, str, dict[str, Any]]:
    return PIL.Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG", {}


# From the picture to a file that TensorFlow reads otherwise or not at all, and `prepare` as the same picture.
ODD_FILES: dict[str, Any] = {
    "shape in the alpha channel alone": _shape_in_alpha_alone,
    "16 bits": _in_16_bits,
    "palette BMP": lambda image: (image.quantize(256), "BMP", {}),
    "TIFF": lambda image: (image, "TIFF", {}),
    "transparent WebP": lambda image: (image.convert("RGBA"), "WEBP", {"lossless": True}),
    "animated WebP": lambda image: (
        image, "WEBP", {"lossless": True, "save_all": True, "append_images": [PIL.ImageOps.invert(image)]},
    ),
    "CMYK TIFF": lambda image: (image.convert("CMYK"), "TIFF", {}),
}  # fmt: skip


@pytest.mark.parametrize("target", [".", "onnx/digits.onnx"])
def test_every_file_is_predicted_as_the_picture_that_prepare_makes_of_it(
    exported: Exported, image_files: list[pathlib.Path], tmp_path: pathlib.Path, target: str
) -> None:
    given = []
    for name, make in ODD_FILES.items():
        with PIL.Image.open(image_files[3]) as image:
            odd, container, options = make(image.convert("RGB"))
        given.append(tmp_path / f"{name}.jpg")  # a name that says nothing
        odd.save(given[-1], container, **options)
    opened = open_target(exported.directory / target)
    expected, *found = opened.predict_files([image_files[3], *given], top=10)
    for prediction in found:
        assert prediction.error is None, prediction
        for a, b in zip(prediction.classes, expected.classes, strict=True):
            assert (a.class_id, a.probability) == (b.class_id, pytest.approx(b.probability, abs=1e-5)), prediction.image


def test_a_picture_of_12_bits_in_16_is_read_as_its_dataset_was_or_not_at_all(
    exported: Exported, image_files: list[pathlib.Path], tmp_path: pathlib.Path
) -> None:
    with PIL.Image.open(image_files[3]) as image:
        grey = np.asarray(image.convert("L"))
    path = tmp_path / "sensor.png"
    PIL.Image.fromarray(grey.astype(np.uint16) << 4).save(path)
    (unknown,) = read_client_images([path])
    assert unknown.error is not None and "(its values need 12)" in unknown.error
    (known,) = read_client_images([path], sample_bits=12)
    with PIL.Image.open(io.BytesIO(known.content)) as seen:
        np.testing.assert_array_equal(np.asarray(seen.convert("L")), grey)
    shutil.copytree(exported.directory / "onnx", tmp_path / "onnx")
    Signature.load(exported.directory).model_copy(update={"sample_bits": 12}).save(tmp_path)
    first, second = open_target(tmp_path / "onnx/digits.onnx").predict_files([image_files[3], path], top=1)
    assert second.error is None and first.classes == second.classes


def test_an_upright_file_is_passed_on_byte_for_byte(image_files: list[pathlib.Path]) -> None:
    (sent,) = read_client_images(image_files[:1])
    assert sent.content == image_files[0].read_bytes()


def test_a_missing_image_is_named(exported: Exported, image_files: list[pathlib.Path]) -> None:
    with pytest.raises(UsageError, match=r"the image .*nowhere.png cannot be read: No such file") as caught:
        open_target(exported.directory / "onnx/digits.onnx").predict_files(
            [image_files[0], pathlib.Path("nowhere.png")], 1
        )
    assert caught.value.exit_status == 2


def _truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda _: b"", "is empty"),
        (lambda _: b"hello, this is text", "is not an image"),
        (_truncated, "is truncated: "),
    ],
)
@pytest.mark.parametrize("target", ["saved_model/digits/3", "onnx/digits.onnx"])
def test_what_is_no_readable_image_is_an_error_of_that_image_alone(
    exported: Exported,
    image_files: list[pathlib.Path],
    tmp_path: pathlib.Path,
    change: Any,
    complaint: str,
    target: str,
) -> None:
    path = tmp_path / "given.png"
    path.write_bytes(change(image_files[0].read_bytes()))
    opened = open_target(exported.directory / target)
    first, bad, second = opened.predict_files([image_files[0], path, image_files[1]], top=1)
    assert bad.image == str(path) and bad.classes == [] and bad.error is not None and complaint in bad.error
    assert [first, second] == opened.predict_files(image_files[:2], top=1)
    assert first.error is None
    with pytest.raises(TrainerError, match=rf"given.png {complaint}.*; 1 of 3 images have no prediction") as caught:
        raise_on_errors([first, bad, second])
    assert caught.value.exit_status == 1
    raise_on_errors([first, second])


def test_a_lone_file_is_told_what_it_lacks(exported: Exported, tmp_path: pathlib.Path) -> None:
    for name in ("tflite/digits-int8.tflite", "onnx/digits.onnx"):
        lone = tmp_path / pathlib.Path(name).name
        shutil.copy(exported.directory / name, lone)
        with pytest.raises(ArtifactError, match=r"no signature.json beside or above .* copy signature.json"):
            open_target(lone)
    shutil.copy(exported.directory / "signature.json", tmp_path)
    open_target(tmp_path / "digits.onnx")


def test_a_file_beside_a_signature_of_another_model_is_refused(
    exported: Exported, image_files: list[pathlib.Path], tmp_path: pathlib.Path
) -> None:
    shutil.copy(exported.directory / "onnx/digits.onnx", tmp_path)
    signature = Signature.of_classifier(model_name="digits", class_names=CLASS_NAMES[1:], geometry=GEOMETRY)
    signature.save(tmp_path)
    with pytest.raises(ArtifactError, match="10 probabilities, but 9 classes"):
        open_target(tmp_path / "digits.onnx").predict_files(image_files[:1], top=1)


def test_what_is_no_target_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist; give a run"):
        open_target(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="is not a run, an export"):
        open_target(tmp_path)
    (tmp_path / "signature.json").write_text("{}")
    (tmp_path / "text.tflite").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match=r"signature.json is not of schema version"):
        open_target(tmp_path / "text.tflite")


def test_a_server_names_the_best_class_alone() -> None:
    class Served:
        label, class_id = "seven", 1
        probabilities = (0.2, 0.7, 0.1)
        predicted = error = None

    (prediction,) = predict_on_server(lambda url, paths: [Served()], "http://host:1", [pathlib.Path("a.png")], top=2)
    assert [(c.class_id, c.label, c.probability) for c in prediction.classes] == [(1, "seven", 0.7), (0, None, 0.2)]


def test_every_predicted_class_is_listed_also_beyond_the_top() -> None:
    found = most_probable(np.array([0.4, 0.9, 0.5]), ["a", "b", "c"], top=1, predicted=[True, True, False])
    assert [(c.label, c.predicted) for c in found] == [("b", True), ("a", True)]


def test_the_formats_of_this_test_are_all_there_are() -> None:
    assert len(FORMATS) == 12
