"""What a published export holds, and that every artifact answers like the model under the promised names."""

import json
import pathlib
import shutil
from typing import Any

import keras
import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import tensorflow as tf
from digits_classifier import CLASS_NAMES, GEOMETRY, SIGNATURE, SIZE_PX, ListedImages, read_digits
from exported import Exported, functions_that_ask_for_xla

from export.convert.conversion import Conversion
from export.convert.inference_model import InferenceModel, frozen_saved_model
from export.convert.to_onnx import convert_to_onnx
from export.convert.to_saved_model import replay_warmup_requests
from export.convert.to_tflite import convert_to_tflite
from export.files.formats import FORMATS, ONNX, ONNX_FLOAT16, ONNX_INT8, TFLITE_INT8
from export.files.version_proof import VersionGolden
from export.gate.golden import Golden
from export.pipeline.make_export import ExportRequest
from export.runtime.runtimes import KerasRuntime, OnnxRuntime, SavedModelRuntime, TfliteRuntime
from export.runtime.samples import load_images, read_batch
from trainer.system.private_api.tensorflow_lite import TensorType, convert_bytearray_to_object

pytestmark = pytest.mark.slow


def test_the_model_is_worth_comparing_with(exported: Exported) -> None:
    figures = exported.report.comparisons[0].figures
    assert figures is not None and figures.reference_accuracy > 0.9


def test_every_format_was_compared_on_the_whole_split_and_passed(exported: Exported) -> None:
    assert [c.title for c in exported.report.comparisons] == [
        "saved_model",
        "saved_model (image_bytes)",
        "saved_model (odd_files)",
        "saved_model (client_pixels)",
        "saved_model (odd_pixels)",
        "saved_model-bfloat16",
        "saved_model-bfloat16 (image_bytes)",
        "saved_model-bfloat16 (odd_files)",
        *(name for name in FORMATS if not name.startswith("saved_model")),
    ]
    assert all(c.failure is None for c in exported.report.comparisons)
    assert exported.report.num_images == exported.report.num_images_in_split == 300


@pytest.mark.parametrize("title", ["saved_model", "saved_model (image_bytes)", "tflite-float32", "onnx"])
def test_float32_artifacts_differ_by_less_than_a_hundred_thousandth(exported: Exported, title: str) -> None:
    comparison = next(c for c in exported.report.comparisons if c.title == title)
    assert comparison.figures is not None and comparison.figures.max_difference is not None
    assert comparison.figures.max_difference < 1e-5
    assert comparison.figures.agreement == 1


def test_the_files_are_those_of_the_contract(exported: Exported) -> None:
    found = {p.relative_to(exported.directory).as_posix() for p in exported.directory.rglob("*") if p.is_file()}
    assert found == {
        *(
            f"{place}/digits/3/{file}"
            for place in ("saved_model", "saved_model-bfloat16")
            for file in (
                "saved_model.pb",
                "fingerprint.pb",
                "variables/variables.index",
                "variables/variables.data-00000-of-00001",
                "assets.extra/tf_serving_warmup_requests",
                "assets.extra/golden_answers.npz",
                "assets.extra/checksums.json",
            )
        ),
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
        "signature.json",
        "labels.txt",
        "golden.npz",
        "parity.json",
        "MODEL_CARD.md",
        "README.md",
        "provenance.json",
        "checksums.json",
    }
    assert (exported.directory / "labels.txt").read_text().splitlines() == CLASS_NAMES


def test_the_saved_model_answers_each_signature_under_the_promised_names(
    exported: Exported, validation: ListedImages
) -> None:
    functions = tf.saved_model.load(str(exported.directory / "saved_model/digits/3")).signatures
    encoded, _ = validation.read(np.arange(3))
    images = load_images(encoded, GEOMETRY).astype(np.float32)
    answers = {
        "serving_default": functions["serving_default"](image_bytes=tf.constant(encoded)),
        "images": functions["images"](images=images),
    }
    for signature_name, answer in answers.items():
        assert {name: (values.dtype.name, values.shape.as_list()) for name, values in answer.items()} == {
            output.name: (output.dtype, [3, *output.shape[1:]])
            for output in SIGNATURE.outputs
            if signature_name in output.signatures
        }
        labels = [label.decode() for label in answer["label"].numpy()]
        assert labels == [CLASS_NAMES[i] for i in answer["class_id"].numpy()]


def test_the_saved_model_does_not_ask_for_xla(exported: Exported) -> None:
    assert functions_that_ask_for_xla(exported.directory / "saved_model/digits/3") == []


def test_the_warm_up_requests_cover_both_signatures_and_are_answered(exported: Exported) -> None:
    from tensorflow_serving.apis import prediction_log_pb2

    version = exported.directory / "saved_model/digits/3"
    records = tf.data.TFRecordDataset(str(version / "assets.extra/tf_serving_warmup_requests")).as_numpy_iterator()
    specs = [prediction_log_pb2.PredictionLog.FromString(r).predict_log.request.model_spec for r in records]
    assert {(s.name, s.signature_name) for s in specs} == {("digits", "serving_default"), ("digits", "images")}
    assert replay_warmup_requests(version) == len(specs) == 4


@pytest.mark.parametrize("place", ["saved_model", "saved_model-bfloat16"])
def test_a_version_proves_itself_wherever_it_is_copied(exported: Exported, tmp_path: pathlib.Path, place: str) -> None:
    from serving.models.golden_check import check_answers, check_files
    from serving.models.saved_model import SavedModelRuntime as ServedRuntime
    from serving.models.warm_up import warm_up

    version = shutil.copytree(exported.directory / place / "digits/3", tmp_path / "digits" / "8")
    check_files(version)
    runtime = ServedRuntime(version)
    check_answers(version, runtime, num_warmup_requests=warm_up(version, runtime))
    golden = VersionGolden.load(version)
    assert set(golden.answers) == {"serving_default", "images"}
    labels = golden.answers["images"].labels
    assert labels is not None
    assert {label.decode() for label in labels} == set(CLASS_NAMES)


@pytest.mark.parametrize("kind", ["float32", "float16", "dynamic", "int8", "int8x16"])
def test_a_tflite_file_has_one_named_signature_and_built_in_operators_alone(exported: Exported, kind: str) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(exported.directory / f"tflite/digits-{kind}.tflite"))
    interpreter.allocate_tensors()
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["images"], "outputs": ["probabilities"]}}
    run = interpreter.get_signature_runner("serving_default")
    expected = np.uint8 if kind == "int8" else np.float32
    assert run.get_input_details()["images"]["shape"].tolist() == [1, SIZE_PX, SIZE_PX, 3]
    assert run.get_input_details()["images"]["dtype"] is expected
    assert run.get_output_details()["probabilities"]["dtype"] is expected


def test_the_int8_file_takes_raw_pixels_however_dark_the_calibration_images_are(model: Any) -> None:
    from ai_edge_litert.interpreter import Interpreter

    source = read_digits("train")
    dark = read_batch(source, np.arange(8), GEOMETRY).images // 4 + 9
    with frozen_saved_model(InferenceModel(model, SIGNATURE), SIGNATURE) as directory:
        content = convert_to_tflite(directory, TFLITE_INT8, dark)
    interpreter = Interpreter(model_content=content)
    scale, zero_point = interpreter.get_input_details()[0]["quantization"]
    assert (scale, zero_point) == (pytest.approx(1.0, abs=1e-6), 0)


def test_smaller_formats_are_smaller(exported: Exported) -> None:
    num_bytes = {c.format: c.num_bytes for c in exported.report.comparisons}
    assert num_bytes["tflite-float16"] < 0.7 * num_bytes["tflite-float32"]
    assert num_bytes["tflite-int8"] < 0.6 * num_bytes["tflite-float32"]


def test_the_bfloat16_saved_model_holds_half_the_bytes_and_answers_in_float32(
    exported: Exported, validation: ListedImages
) -> None:
    weights = {
        place: (exported.directory / place / "digits/3/variables/variables.data-00000-of-00001").stat().st_size
        for place in ("saved_model", "saved_model-bfloat16")
    }
    assert 0.45 < weights["saved_model-bfloat16"] / weights["saved_model"] < 0.55
    images = load_images(validation.read(np.arange(64))[0], GEOMETRY)
    exact, rounded = (
        SavedModelRuntime(exported.directory / place / "digits/3").predict_images(images) for place in weights
    )
    assert rounded["probabilities"].dtype == np.float32
    difference = np.abs(exact["probabilities"] - rounded["probabilities"]).max()
    # Three digits: what is nearer was not computed in bfloat16, what is further is another model.
    assert 1e-4 < difference < 0.05


@pytest.mark.parametrize("precision", ["", "-float16", "-dynamic", "-int8", "-int8x16"])
def test_an_onnx_file_has_named_float32_tensors_and_a_free_batch(exported: Exported, precision: str) -> None:
    model = onnx.load(str(exported.directory / f"onnx/digits{precision}.onnx"))
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"images": ["batch", SIZE_PX, SIZE_PX, 3], "probabilities": ["batch", 10]}
    types = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    assert types == {onnx.TensorProto.FLOAT}
    # The standard's operators alone: any runtime has them.
    assert {entry.domain for entry in model.opset_import} == {""} == {node.domain for node in model.graph.node}
    inferred = {value.name for value in model.graph.value_info}
    produced = {name for node in model.graph.node for name in node.output} - {"probabilities"}
    assert produced <= inferred


def test_batch_normalisation_is_folded_into_depthwise_convolutions_too() -> None:
    layers = keras.layers
    x = images = keras.Input((SIZE_PX, SIZE_PX, 3), name="images")
    for i, convolution in enumerate((layers.DepthwiseConv2D(3), layers.Conv2D(8, 3), layers.DepthwiseConv2D(3))):
        x = layers.ReLU(6.0)(layers.BatchNormalization(name=f"norm{i}")(convolution(x)))
    logits = layers.Dense(len(CLASS_NAMES), name="head")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(images, logits)
    generator = np.random.default_rng(3)
    for i in range(3):
        norm = model.get_layer(f"norm{i}")
        norm.set_weights([generator.uniform(0.5, 2, w.shape) for w in norm.get_weights()])
    content = convert_to_onnx(InferenceModel(model, SIGNATURE))
    kinds = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert kinds.count("Conv") == 3
    assert not {"Mul", "Add", "BatchNormalization"} & set(kinds)


def weights_of(path: pathlib.Path) -> set[int]:
    """The types of the constants of an ONNX file that are large enough to be weights."""
    return {i.data_type for i in onnx.load(str(path)).graph.initializer if np.prod(i.dims) >= 100}


def test_the_weights_of_an_onnx_file_have_the_promised_bits(exported: Exported) -> None:
    types = onnx.TensorProto
    weights = {
        p: weights_of(exported.directory / f"onnx/digits{p}.onnx") for p in ("", "-float16", "-dynamic", "-int8")
    }
    assert weights == {"": {types.FLOAT}, "-float16": {types.FLOAT16}, "-dynamic": {types.INT8}, "-int8": {types.INT8}}


def sizes_by_bits(path: pathlib.Path) -> dict[int, int]:
    """How many numbers are stored in 16 bits and in 32, in an ONNX or a TFLite file."""
    sizes: dict[int, int] = {16: 0, 32: 0}
    if path.suffix == ".onnx":
        bits = {onnx.TensorProto.FLOAT16: 16, onnx.TensorProto.FLOAT: 32}
        stored = [(bits.get(i.data_type), i.dims) for i in onnx.load(str(path)).graph.initializer]
    else:
        model = convert_bytearray_to_object(bytearray(path.read_bytes()))
        bits = {TensorType.FLOAT16: 16, TensorType.FLOAT32: 32}
        constants = [t for t in model.subgraphs[0].tensors if model.buffers[t.buffer].data is not None]
        stored = [(bits.get(t.type), t.shape) for t in constants]
    for num_bits, shape in stored:
        if num_bits:
            sizes[num_bits] += int(np.prod(shape))
    return sizes


@pytest.mark.parametrize("path", ["onnx/digits-float16.onnx", "tflite/digits-float16.tflite"])
def test_a_float16_file_keeps_a_hundredth_of_the_weights_in_32_bits(exported: Exported, path: str) -> None:
    sizes = sizes_by_bits(exported.directory / path)
    assert 0 < sizes[32] < 0.015 * sizes[16]


@pytest.mark.parametrize("precision", ["-dynamic", "-int8"])
def test_int8_weights_of_an_onnx_file_have_7_bits_and_saturate_nowhere(exported: Exported, precision: str) -> None:
    initializers = onnx.load(str(exported.directory / f"onnx/digits{precision}.onnx")).graph.initializer
    weights = [onnx.numpy_helper.to_array(i) for i in initializers if i.data_type == onnx.TensorProto.INT8 and i.dims]
    assert max(np.abs(w.astype(int)).max() for w in weights) == 64


def scales_of(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    model = onnx.load(str(path))
    shapes = {i.name: tuple(i.dims) for i in model.graph.initializer}
    weights = {n.input[0]: shapes[n.input[1]] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    return {name: shape for name, shape in weights.items() if name in shapes and len(shapes[name]) == 4}


def test_the_int8_onnx_file_has_a_scale_for_each_channel(exported: Exported) -> None:
    scales = scales_of(exported.directory / "onnx/digits-int8.onnx")
    assert sorted(scales.values()) == [(12,), (24,)]


def test_the_ranges_of_the_int8_onnx_file_come_from_the_training_images(
    exported: Exported, export_request: ExportRequest, model: Any
) -> None:
    dark = ListedImages("train", *read_digits("train").read(np.zeros(1, np.int64)))
    with Conversion(InferenceModel(model, SIGNATURE), SIGNATURE, dark) as conversion:
        of_one_image = conversion.convert(ONNX_INT8)
    with Conversion(InferenceModel(model, SIGNATURE), SIGNATURE, export_request.training) as conversion:
        of_all = conversion.convert(ONNX_INT8)
    assert of_all == (exported.directory / "onnx/digits-int8.onnx").read_bytes()
    assert of_one_image != of_all


@pytest.mark.parametrize("opset", [14, 16])
def test_onnx_files_have_the_operator_set_that_was_asked_for(model: Any, opset: int, tmp_path: pathlib.Path) -> None:
    inference, source = InferenceModel(model, SIGNATURE), read_digits("train")
    images = read_batch(source, np.arange(4), GEOMETRY).images
    expected = KerasRuntime(model).predict_probabilities(images)
    with Conversion(inference, SIGNATURE, source, onnx_opset=opset) as conversion:
        for wanted, tolerance in ((ONNX, 1e-5), (ONNX_FLOAT16, 1e-2), (ONNX_INT8, 0.1)):
            path = tmp_path / "model.onnx"
            path.write_bytes(conversion.convert(wanted))
            assert {o.version for o in onnx.load(str(path)).opset_import if not o.domain} == {opset}
            np.testing.assert_allclose(OnnxRuntime(path).predict_probabilities(images), expected, atol=tolerance)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_every_runtime_takes_uint8_and_float_pixels_in_any_batch(
    exported: Exported, model: Any, validation: ListedImages, batch_size: int
) -> None:
    directory = exported.directory
    images = load_images(validation.read(np.arange(batch_size))[0], GEOMETRY)
    expected = KerasRuntime(model).predict_probabilities(images)
    for runtime in (
        SavedModelRuntime(directory / "saved_model/digits/3"),
        TfliteRuntime(directory / "tflite/digits-float32.tflite"),
        OnnxRuntime(directory / "onnx/digits.onnx"),
    ):
        for pixels in (images, images.astype(np.float32)):
            np.testing.assert_allclose(runtime.predict_probabilities(pixels), expected, atol=1e-5)
    int8 = TfliteRuntime(directory / "tflite/digits-int8.tflite").predict_probabilities(images)
    np.testing.assert_allclose(int8, expected, atol=0.2)
    assert int8.dtype == np.float32


def test_the_golden_file_holds_real_images_and_every_answer(exported: Exported, model: Any) -> None:
    golden = Golden.load(exported.directory)
    assert len(golden.batch.images) == 16
    np.testing.assert_array_equal(load_images(golden.batch.encoded, GEOMETRY), golden.batch.images)
    np.testing.assert_allclose(
        golden.probabilities, KerasRuntime(model).predict_probabilities(golden.batch.images), atol=1e-6
    )
    assert set(golden.answers) == {c.title for c in exported.report.comparisons if c.input in ("images", "image_bytes")}


def test_the_report_on_disk_is_the_one_returned_without_times(exported: Exported) -> None:
    on_disk = json.loads((exported.directory / "parity.json").read_text())
    assert on_disk == exported.report.model_dump(mode="json")
    assert "ms_per_image" not in on_disk["comparisons"][0]
    assert exported.report.answer()["comparisons"][0]["ms_per_image"] > 0


def test_the_model_card_states_the_figures(exported: Exported) -> None:
    card = (exported.directory / "MODEL_CARD.md").read_text()
    for comparison in exported.report.comparisons:
        assert comparison.figures is not None
        assert f"| {comparison.title} | `{comparison.path}` |" in card and f"{comparison.figures.accuracy:.4f}" in card
