"""The gate turns red for every way in which an artifact can silently differ, and then nothing is published."""

import dataclasses
import io
import pathlib
import re
import shutil
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import PIL.Image
import pytest
import tensorflow as tf
from digits_classifier import CLASS_NAMES, SIGNATURE, SIZE_PX, ListedImages, build_model, copy_of, read_digits
from exported import Exported

from export.convert.conversion import Conversion
from export.convert.graph_reading import read_header
from export.convert.inference_model import InferenceModel
from export.convert.to_saved_model import write_saved_model
from export.files.formats import FORMATS, ONNX, SAVED_MODEL, TFLITE_FLOAT32, TFLITE_INT8, Format
from export.files.parity import Artifact, Comparison, ParityReport
from export.files.signature import IMAGES, PROBABILITIES, Signature
from export.gate.odd_files import make_odd_files
from export.gate.run_gate import run_gate
from export.pipeline.make_export import ExportRequest, make_export
from export.runtime.client_images import load_client_pixels
from export.runtime.runtimes import KerasRuntime
from export.runtime.samples import load_images, read_batch
from tests.complete import IS_COMPLETE
from trainer.data.preparation.images.image_check import ReadableImage, check_image
from trainer.errors import ArtifactError, ExportError, ParityError

pytestmark = pytest.mark.slow


def write_artifact(model: Any, signature: Signature, wanted: Format, path: pathlib.Path) -> None:
    """Makes one artifact of `model` in the place of another, without any comparison."""
    inference = InferenceModel(model, signature)
    if wanted.kind == "saved_model":
        shutil.rmtree(path)
        warmup = read_batch(read_digits("train"), np.arange(4), signature.geometry)
        write_saved_model(inference, signature, path, warmup)
    else:
        with Conversion(inference, signature, read_digits("train")) as conversion:
            path.write_bytes(conversion.convert(wanted))


def compare(directory: pathlib.Path, model: Any, validation: ListedImages, *formats: Format) -> ParityReport:
    """The report, without the row for the pixels of a client."""
    report = run_gate(
        reference=KerasRuntime(model),
        reference_name="the model",
        signature=SIGNATURE,
        export_dir=directory,
        artifacts=[Artifact.of(f, SIGNATURE, 3) for f in formats],
        source=validation,
        max_images=150,
    )
    return report.model_copy(
        update={"comparisons": [c for c in report.comparisons if c.input in ("images", "image_bytes")]}
    )


def perturb_a_layer(model: Any) -> None:
    kernel, *others = model.get_layer("conv1").get_weights()
    model.get_layer("conv1").set_weights([kernel + np.random.default_rng(0).normal(0, 0.3, kernel.shape), *others])


def swap_two_classes(model: Any) -> None:
    kernel, bias = model.get_layer("head").get_weights()
    order = [1, 0, *range(2, len(CLASS_NAMES))]
    model.get_layer("head").set_weights([kernel[:, order], bias[order]])


def shift_the_pixels(model: Any) -> None:
    model.get_layer("scale").offset = 0.0


def scale_the_pixels(model: Any) -> None:
    model.get_layer("scale").scale = 1 / 255


ALL = tuple(FORMATS.values())
# One of each converter: every format sees the first damage, and every damage with TRAINER_TESTS_COMPLETE=1.
SOME = ALL if IS_COMPLETE else (SAVED_MODEL, TFLITE_INT8, ONNX)


@pytest.mark.parametrize(
    ("damage", "formats"),
    [(perturb_a_layer, ALL), (swap_two_classes, SOME), (shift_the_pixels, SOME), (scale_the_pixels, SOME)],
)
def test_an_artifact_of_a_damaged_model_is_red_in_every_format(
    damage: Callable[[Any], None],
    formats: tuple[Format, ...],
    copy_of_export: pathlib.Path,
    model: Any,
    validation: ListedImages,
) -> None:
    damaged = copy_of(model)
    damage(damaged)
    with Conversion(InferenceModel(damaged, SIGNATURE), SIGNATURE, read_digits("train")) as conversion:
        for wanted in formats:
            path = copy_of_export / Artifact.of(wanted, SIGNATURE, 3).path
            if wanted.kind == "saved_model":
                write_artifact(damaged, SIGNATURE, wanted, path)
            else:
                path.write_bytes(conversion.convert(wanted))
    report = compare(copy_of_export, model, validation, *formats)
    assert [c.title for c in report.comparisons if not c.failure] == []
    assert all(c.figures for c in report.comparisons), "each of them runs: it is the answers that differ"
    with pytest.raises(
        ParityError, match=rf"saved_model, saved_model/digits/3: .*\({len(report.comparisons) - 1} more failed\)"
    ):
        report.raise_on_failure()


# What the scale of each class in the weights of the head is multiplied by.
WRONG_SCALES = np.geomspace(0.2, 5, len(CLASS_NAMES)).astype(np.float32)


def damage_a_tflite_scale(path: pathlib.Path) -> None:
    from trainer.system.private_api.tensorflow_lite import convert_bytearray_to_object, convert_object_to_bytearray

    file = convert_bytearray_to_object(bytearray(path.read_bytes()))
    (weights,) = (t for t in file.subgraphs[0].tensors if t.name == b"head_1/MatMul")
    weights.quantization.scale = (WRONG_SCALES * weights.quantization.scale).tolist()
    path.write_bytes(bytes(convert_object_to_bytearray(file)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", SIGNATURE.labels_text())


def damage_an_onnx_scale(path: pathlib.Path) -> None:
    file = onnx.load(str(path))
    (scale,) = (i for i in file.graph.initializer if i.name == "head_1/MatMul/constant_1_scale")
    damaged = WRONG_SCALES * onnx.numpy_helper.to_array(scale)
    scale.CopyFrom(onnx.numpy_helper.from_array(damaged, scale.name))
    path.write_bytes(file.SerializeToString())


@pytest.mark.parametrize("wanted", [f for f in FORMATS.values() if f.name.endswith(("int8", "int8x16", "dynamic"))])
def test_a_wrong_quantisation_scale_is_red(
    copy_of_export: pathlib.Path, model: Any, validation: ListedImages, wanted: Format
) -> None:
    path = copy_of_export / Artifact.of(wanted, SIGNATURE, 3).path
    damage_a_tflite_scale(path) if wanted.kind == "tflite" else damage_an_onnx_scale(path)
    (comparison,) = compare(copy_of_export, model, validation, wanted).comparisons
    assert comparison.figures is not None
    assert comparison.failure is not None and "points lower than the model's" in comparison.failure


@pytest.mark.parametrize("wanted", [f for f in FORMATS.values() if f.kind == "tflite"])
def test_labels_in_another_order_inside_a_tflite_file_are_red(
    copy_of_export: pathlib.Path, model: Any, validation: ListedImages, wanted: Format
) -> None:
    path = copy_of_export / Artifact.of(wanted, SIGNATURE, 3).path
    content = path.read_bytes()
    text, other = (x.labels_text().encode() for x in (SIGNATURE, reordered(SIGNATURE)))
    assert content.count(text) == 1 and len(text) == len(other)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("labels.txt", other)
    (comparison,) = compare(copy_of_export, model, validation, wanted).comparisons
    assert comparison.failure == "the labels.txt inside does not list the classes of the signature in their order"


def reordered(signature: Signature) -> Signature:
    return signature.model_copy(update={"class_names": CLASS_NAMES[::-1]})


def test_a_small_change_of_weights_is_red_where_float32_was_promised(
    copy_of_export: pathlib.Path, model: Any, validation: ListedImages
) -> None:
    damaged = copy_of(model)
    kernel, bias = damaged.get_layer("head").get_weights()
    damaged.get_layer("head").set_weights([kernel * 1.01, bias])
    write_artifact(damaged, SIGNATURE, ONNX, copy_of_export / "onnx/digits.onnx")
    (comparison,) = compare(copy_of_export, model, validation, ONNX).comparisons
    assert comparison.failure is not None and "where 1e-04 is allowed" in comparison.failure


def test_labels_in_another_order_are_red_though_the_probabilities_are_right(
    copy_of_export: pathlib.Path, model: Any, validation: ListedImages
) -> None:
    write_artifact(model, reordered(SIGNATURE), SAVED_MODEL, copy_of_export / "saved_model/digits/3")
    for comparison in compare(copy_of_export, model, validation, SAVED_MODEL).comparisons:
        assert comparison.failure is not None and "where the signature says" in comparison.failure


def test_another_resize_is_red_for_encoded_images_alone(
    copy_of_export: pathlib.Path, model: Any, validation: ListedImages
) -> None:
    squashed = SIGNATURE.model_copy(update={"resize": "squash"})
    write_artifact(model, squashed, SAVED_MODEL, copy_of_export / "saved_model/digits/3")
    failures = {c.input: c.failure for c in compare(copy_of_export, model, validation, SAVED_MODEL).comparisons}
    assert failures["images"] is None
    assert failures["image_bytes"] is not None and "differs by" in failures["image_bytes"]


def test_a_tflite_file_that_lost_its_weights_in_conversion_is_red(
    copy_of_export: pathlib.Path, model: Any, validation: ListedImages, tmp_path: pathlib.Path
) -> None:
    module = tf.Module()
    module.model = model
    spec = tf.TensorSpec([1, SIZE_PX, SIZE_PX, 3], tf.float32, name=IMAGES)
    module.answer = tf.function(lambda images: {PROBABILITIES: tf.nn.softmax(model(images, training=False))}, [spec])
    tf.saved_model.save(module, str(tmp_path / "unfrozen"), signatures={"serving_default": module.answer})
    content = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "unfrozen")).convert()
    path = copy_of_export / "tflite/digits-float32.tflite"
    assert len(content) < 0.5 * path.stat().st_size, "the converter keeps the weights now: freezing is not needed"
    path.write_bytes(content)
    (comparison,) = compare(copy_of_export, model, validation, TFLITE_FLOAT32).comparisons
    assert comparison.failure is not None


def test_a_file_that_no_runtime_loads_is_red_and_the_others_are_still_compared(
    copy_of_export: pathlib.Path, model: Any, validation: ListedImages
) -> None:
    (copy_of_export / "tflite/digits-float32.tflite").write_bytes(b"TFL3 but not really")
    (copy_of_export / "onnx/digits.onnx").unlink()
    shutil.rmtree(copy_of_export / "saved_model/digits/3/variables")
    report = compare(copy_of_export, model, validation, SAVED_MODEL, TFLITE_FLOAT32, TFLITE_INT8, ONNX)
    failures = {c.format: c.failure for c in report.comparisons}
    assert "does not load as a SavedModel" in str(failures["saved_model"])
    assert "does not load in LiteRT" in str(failures["tflite-float32"])
    assert "cannot be read" in str(failures["onnx"])
    assert failures["tflite-int8"] is None


def with_model(export_request: ExportRequest, model: Any, *formats: Format) -> ExportRequest:
    return dataclasses.replace(export_request, model=model, formats=formats)


def test_a_model_that_answers_nan_is_not_published(export_request: ExportRequest, tmp_path: pathlib.Path) -> None:
    broken = build_model()
    kernel, bias = broken.get_layer("head").get_weights()
    broken.get_layer("head").set_weights([np.full_like(kernel, np.nan), bias])
    with pytest.raises(ParityError, match="NaN or infinity in the answers to 300 of 300 images") as caught:
        make_export(with_model(export_request, broken, ONNX), tmp_path / "export")
    assert caught.value.exit_status == 1
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_tflite_lacks_is_named(export_request: ExportRequest, tmp_path: pathlib.Path) -> None:
    import keras

    images = keras.Input((SIZE_PX, SIZE_PX, 3))
    x = keras.layers.Flatten()(keras.layers.Resizing(8, 8, interpolation="bicubic")(images))
    model = keras.Model(images, keras.layers.Dense(len(CLASS_NAMES))(x))
    with pytest.raises(ExportError, match=r"tflite-float32 has no operator for tf\.ResizeBicubic \(in .*resizing") as e:
        make_export(with_model(export_request, model, TFLITE_FLOAT32), tmp_path / "export")
    assert e.value.exit_status == 1
    assert list(tmp_path.iterdir()) == []


def test_an_export_in_the_way_is_replaced_only_on_request(
    export_request: ExportRequest, copy_of_export: pathlib.Path, model: Any
) -> None:
    smaller = with_model(export_request, model, ONNX)
    with pytest.raises(ArtifactError, match=r"holds an export already.*--overwrite"):
        make_export(smaller, copy_of_export)
    assert (copy_of_export / "saved_model").is_dir()
    make_export(smaller, copy_of_export, overwrite=True)
    assert not (copy_of_export / "saved_model").exists() and (copy_of_export / "onnx/digits.onnx").is_file()


def test_a_directory_that_is_no_export_is_never_replaced(export_request: ExportRequest, tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not an export, so it is left alone"):
        make_export(export_request, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_failed_replacement_leaves_the_export_that_was_there(
    export_request: ExportRequest, copy_of_export: pathlib.Path
) -> None:
    before = (copy_of_export / "checksums.json").read_bytes()
    broken = build_model()
    kernel, bias = broken.get_layer("head").get_weights()
    broken.get_layer("head").set_weights([np.full_like(kernel, np.inf), bias])
    with pytest.raises(ParityError):
        make_export(with_model(export_request, broken, ONNX), copy_of_export, overwrite=True)
    assert (copy_of_export / "checksums.json").read_bytes() == before


def test_fewer_images_are_spread_over_the_split_and_said(
    exported: Exported, model: Any, validation: ListedImages
) -> None:
    report = compare(exported.directory, model, validation, ONNX)
    assert (report.num_images, report.num_images_in_split) == (150, 300)


def test_encoded_images_are_decoded_as_in_training(validation: ListedImages) -> None:
    from digits_classifier import GEOMETRY

    from trainer.data.decode.preprocess import load_image

    encoded, _ = validation.read(np.arange(2))
    expected = np.stack([load_image(tf.constant(e), GEOMETRY).numpy() for e in encoded])
    np.testing.assert_array_equal(load_images(encoded, GEOMETRY), expected)


def test_pixels_that_a_client_resized_otherwise_are_red(
    exported: Exported, model: Any, validation: ListedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def squash(encoded: Any, geometry: Any) -> Any:
        return load_client_pixels(encoded, dataclasses.replace(geometry, resize="squash"))

    def of_client() -> Comparison:
        report = run_gate(
            reference=KerasRuntime(model),
            reference_name="the model",
            signature=SIGNATURE,
            export_dir=exported.directory,
            artifacts=[Artifact.of(ONNX, SIGNATURE, 3)],
            source=validation,
        )
        (found,) = (c for c in report.comparisons if c.input == "client_pixels")
        return found

    right = of_client()
    assert right.title == "onnx (client_pixels)" and right.failure is None
    assert right.figures is not None and right.figures.max_difference is not None
    assert 0 < right.figures.max_difference < 0.05, "Pillow rounds otherwise than TensorFlow"
    monkeypatch.setattr("export.gate.artifact_checks.load_client_pixels", squash)
    failure = of_client().failure
    assert failure is not None and "points lower than the model's" in failure


def odd_files_of(directory: pathlib.Path, model: Any, validation: ListedImages, wanted: Format) -> dict[str, Any]:
    report = run_gate(
        reference=KerasRuntime(model),
        reference_name="the model",
        signature=SIGNATURE,
        export_dir=directory,
        artifacts=[Artifact.of(wanted, SIGNATURE, 3)],
        source=validation,
        max_images=8,
    )
    return {c.input: c for c in report.comparisons if c.input.startswith("odd_")}


@pytest.mark.parametrize(
    ("missed", "kind"),
    [
        ({"orientation": 1}, "(JPEG|PNG) of orientation [2-8]"),
        ({"is_transparent": False}, "PNG (with the picture in its alpha channel alone|of a palette)"),
        ({"status": "ok"}, ""),
    ],
)
def test_a_graph_that_reads_strangers_files_otherwise_than_training_is_red(
    copy_of_export: pathlib.Path,
    model: Any,
    validation: ListedImages,
    monkeypatch: pytest.MonkeyPatch,
    missed: dict[str, Any],
    kind: str,
) -> None:
    def misread(encoded: Any) -> Any:
        reading = read_header(encoded)
        changed = {name: tf.constant(value, getattr(reading, name).dtype) for name, value in missed.items()}
        return reading._replace(**changed)

    monkeypatch.setattr("export.convert.image_batch.read_header", misread)
    write_artifact(model, SIGNATURE, SAVED_MODEL, copy_of_export / "saved_model/digits/3")
    found = odd_files_of(copy_of_export, model, validation, SAVED_MODEL)
    assert found["odd_pixels"].failure is None
    assert re.match(f"{kind}.*: a probability differs by .* where 2e-01 is allowed", found["odd_files"].failure)


def test_a_client_that_drops_transparency_is_red(
    exported: Exported, model: Any, validation: ListedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drop(encoded: Any, geometry: Any) -> Any:
        files = []
        for content in encoded:
            with PIL.Image.open(io.BytesIO(content)) as image:
                file = io.BytesIO()
                image.convert("RGBA").convert("RGB").save(file, "PNG")
                files.append(file.getvalue())
        return load_client_pixels(files, geometry)

    monkeypatch.setattr("export.gate.artifact_checks.load_client_pixels", drop)
    found = odd_files_of(exported.directory, model, validation, ONNX)
    assert "a probability differs by" in found["odd_pixels"].failure


def test_odd_files_are_the_same_for_the_same_images(validation: ListedImages) -> None:
    from digits_classifier import GEOMETRY

    files = make_odd_files(validation, GEOMETRY)
    assert files.batch.encoded == make_odd_files(validation, GEOMETRY).batch.encoded
    assert len(set(files.kinds)) == 21 and len(files.kinds) == 63
    # Training's reading of them is that of `prepare`.
    for content, pixels in zip(files.batch.encoded, files.batch.images, strict=True):
        stored = check_image(content)
        assert isinstance(stored, ReadableImage)
        (seen,) = load_images([stored.encoded], GEOMETRY)
        assert np.abs(seen.astype(int) - pixels).max() <= 24, "but for one more coding as JPEG"
