"""Where an int8 file is over its budget, other settings are tried, the first good one is published, and it is said."""

import contextlib
import io
import pathlib
from typing import Any

import numpy as np
import pytest
from digits_classifier import CLASS_NAMES, ListedImages, build_model
from rich.console import Console
from test_parity_gate import with_model

from export.files.formats import ONNX, ONNX_INT8, ONNX_INT8X16, TFLITE_INT8
from export.files.parity import ParityReport
from export.gate.replay import verify_export
from export.pipeline.make_export import ExportRequest, make_export
from trainer.cli.export_tables import parity_table
from trainer.errors import ParityError

pytestmark = pytest.mark.slow


def with_a_constant_beside_the_features(model: Any, constant: float, weight: float = 0.0) -> Any:
    """The same function, but one scale has to hold the features and a constant that is far larger.

    weight: what the constants add to the logit of a class, times the class; the bias takes it away again.
    """
    import keras

    features = model.get_layer("dropout").output
    beside = keras.layers.Rescaling(0.0, constant)(features)
    logits = keras.layers.Dense(len(CLASS_NAMES), name="wide_head")(keras.layers.Concatenate()([features, beside]))
    wide = keras.Model(model.inputs, logits)
    kernel, bias = model.get_layer("head").get_weights()
    added = weight * np.arange(len(CLASS_NAMES), dtype=np.float32)
    rows = np.tile(added / constant / len(kernel), (len(kernel), 1))
    wide.get_layer("wide_head").set_weights([np.concatenate([kernel, rows]), bias - added])
    return wide


def with_one_heavy_tailed_layer(model: Any) -> Any:
    """The same function, but by way of the fourth power of the features: 8 bits hold its largest values alone."""
    import keras

    return keras.Model(model.inputs, model.get_layer("head")(_root_of_fourth_power(model)))


def with_a_large_layer_after_the_heavy_tailed_one(model: Any) -> Any:
    """The same function once more; the features go through a layer that has nearly all the weights."""
    import keras

    root = _root_of_fourth_power(model)
    num_features = root.shape[-1]
    identity = keras.layers.Dense(2 * num_features, use_bias=False, name="identity")
    head = keras.layers.Dense(len(CLASS_NAMES), name="wide_head")
    large = keras.Model(model.inputs, head(identity(root)))
    identity.set_weights([np.tile(np.eye(num_features, dtype=np.float32), (1, 2))])
    kernel, bias = model.get_layer("head").get_weights()
    head.set_weights([np.tile(kernel, (2, 1)) / 2, bias])
    return large


def _root_of_fourth_power(model: Any) -> Any:
    import keras

    features = model.get_layer("dropout").output
    fourth = keras.layers.Multiply(name="fourth")([keras.layers.Multiply(name="square")([features, features])] * 2)
    return keras.ops.sqrt(keras.ops.sqrt(fourth))


def publish_and_watch(
    export_request: ExportRequest, directory: pathlib.Path, *, allow_failed: bool = False
) -> ParityReport:
    """The report as a person is shown it, also where nothing is then published."""
    seen: list[ParityReport] = []
    with contextlib.suppress(ParityError):
        make_export(export_request, directory, allow_failed=allow_failed, on_report=seen.append)
    return seen[0]


def failures(report: ParityReport) -> list[tuple[str, str | None]]:
    """Of each format, in order; that of a client's pixels is another matter."""
    return [(c.format, c.failure) for c in report.comparisons if c.input == "images"]


@pytest.fixture(scope="module")
def in_part(export_request: ExportRequest, model: Any, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An export whose int8 files are within budget only with some layers in float32."""
    directory = tmp_path_factory.mktemp("ladder") / "export"
    make_export(with_model(export_request, with_one_heavy_tailed_layer(model), TFLITE_INT8, ONNX_INT8, ONNX), directory)
    return directory


def test_layers_that_int8_harms_most_stay_in_float_where_that_is_enough(in_part: pathlib.Path) -> None:
    report = ParityReport.load(in_part)
    assert failures(report) == [
        ("tflite-int8", None),
        ("onnx-int8", None),
        ("onnx", None),
    ]
    for ladder in report.ladders:
        *failed, last = ladder.rungs
        assert ladder.chosen == ladder.format == last.format
        assert "left in float32" in last.what and last.failure is None
        assert failed[0].what.startswith("256 calibration images") and failed[1].what == "1,024 calibration images"
        assert all("points lower" in str(r.failure) for r in failed)
    assert [ladder.format for ladder in report.ladders] == ["tflite-int8", "onnx-int8"]


def test_a_large_layer_does_not_stay_in_float_for_the_sake_of_a_small_one(
    export_request: ExportRequest, model: Any, tmp_path: pathlib.Path
) -> None:
    large = with_a_large_layer_after_the_heavy_tailed_one(model)
    report = make_export(with_model(export_request, large, TFLITE_INT8, ONNX_INT8), tmp_path / "export")
    for ladder in report.ladders:
        first, *_, last = ladder.rungs
        assert "left in float32" in last.what and last.failure is None
        assert first.num_bytes and last.num_bytes and last.num_bytes < 1.05 * first.num_bytes
    assert [ladder.chosen for ladder in report.ladders] == ["tflite-int8", "onnx-int8"]


def test_a_file_from_the_ladder_is_called_like_any_other(in_part: pathlib.Path, validation: ListedImages) -> None:
    from ai_edge_litert.interpreter import Interpreter

    details = Interpreter(str(in_part / "tflite/digits-int8.tflite"))
    assert details.get_input_details()[0]["dtype"] is details.get_output_details()[0]["dtype"] is np.uint8
    assert details.get_input_details()[0]["quantization"] == (pytest.approx(1, abs=1e-6), 0)
    verify_export(in_part, source=validation).raise_on_failure()


def test_what_was_tried_and_chosen_is_said_in_the_table_and_in_the_card(in_part: pathlib.Path) -> None:
    report = ParityReport.load(in_part)
    console = Console(width=400, file=io.StringIO())
    console.print(parity_table(report))
    table, card = console.file.getvalue(), (in_part / "MODEL_CARD.md").read_text()  # type: ignore[attr-defined]
    for text in (table, card):
        assert "tflite-int8, 1,024 calibration images: accuracy is" in text
        assert "tflite-int8 is published with the layers that it harms most, up to 30% of all" in text
        assert "ONLY 300 IMAGES were compared, all that the split has" in text


def test_where_no_int8_file_will_do_another_format_stands_in_under_its_own_name(
    export_request: ExportRequest, model: Any, tmp_path: pathlib.Path
) -> None:
    wide = with_a_constant_beside_the_features(model, 3e3)
    report = make_export(with_model(export_request, wide, ONNX_INT8, ONNX), tmp_path / "export")
    assert failures(report) == [("onnx-int8x16", None), ("onnx", None)]
    assert [(ladder.format, ladder.chosen) for ladder in report.ladders] == [("onnx-int8", "onnx-int8x16")]
    assert {p.name for p in (tmp_path / "export/onnx").iterdir()} == {"digits-int8x16.onnx", "digits.onnx"}
    assert "onnx-int8x16 (activations of 16 bits) is published instead of onnx-int8" in report.remarks()


def test_a_format_that_was_asked_for_anyway_stands_in_without_being_made_again(
    export_request: ExportRequest, model: Any, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = with_a_constant_beside_the_features(model, 3e3)
    report = make_export(with_model(export_request, wide, ONNX_INT8, ONNX_INT8X16), tmp_path / "export")
    assert failures(report) == [("onnx-int8x16", None)]
    assert "trying onnx-int8x16" not in capsys.readouterr().err


def test_nothing_over_budget_is_published_unless_asked_for_and_then_it_is_marked(
    export_request: ExportRequest, model: Any, validation: ListedImages, tmp_path: pathlib.Path
) -> None:
    hopeless = with_model(export_request, with_a_constant_beside_the_features(model, 1e9, weight=10), ONNX_INT8, ONNX)
    report = publish_and_watch(hopeless, tmp_path / "export")
    assert list(tmp_path.iterdir()) == [] and report.answer()["passed"] is False
    (ladder,) = report.ladders
    assert ladder.chosen is None and len(ladder.rungs) == 7 and all(r.failure for r in ladder.rungs)
    assert report.remarks()[-1] == "onnx-int8: no attempt is within budget"

    export = tmp_path / "allowed"
    publish_and_watch(hopeless, export, allow_failed=True)
    assert {c.format: c.allowed for c in ParityReport.load(export).comparisons} == {"onnx-int8": True, "onnx": False}
    console = Console(width=400, file=io.StringIO())
    console.print(parity_table(ParityReport.load(export)))
    assert "OVER BUDGET" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "| onnx-int8 (**over budget**) | `onnx/digits-int8.onnx`" in (export / "MODEL_CARD.md").read_text()
    # The gate that is run again allows what was marked, and nothing else.
    verification = verify_export(export, source=validation)
    verification.raise_on_failure()
    assert verification.parity is not None and verification.parity.allowed_paths() == {"onnx/digits-int8.onnx"}


def test_what_answers_nan_is_not_published_on_request_either(
    export_request: ExportRequest, model: Any, tmp_path: pathlib.Path
) -> None:
    broken = build_model()
    kernel, bias = broken.get_layer("head").get_weights()
    broken.get_layer("head").set_weights([np.full_like(kernel, np.nan), bias])
    with pytest.raises(ParityError, match="NaN or infinity"):
        make_export(with_model(export_request, broken, ONNX), tmp_path / "export", allow_failed=True)
    assert list(tmp_path.iterdir()) == []
