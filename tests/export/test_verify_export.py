"""`trainer verify`: checksums, golden images and the gate again, on an export that lies on its own."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from digits_classifier import SIGNATURE, ListedImages, copy_of
from exported import Exported
from test_parity_gate import write_artifact

from export.convert.graph_reading import Reading, read_header
from export.files.checksums import Checksums
from export.files.formats import FORMATS, SAVED_MODEL
from export.files.parity import Artifact
from export.gate.replay import verify_export
from trainer.errors import ArtifactError, ParityError

pytestmark = pytest.mark.slow

FILES = [
    "saved_model/digits/3/saved_model.pb",
    "saved_model/digits/3/variables/variables.data-00000-of-00001",
    "saved_model/digits/3/assets.extra/tf_serving_warmup_requests",
    "tflite/digits-int8.tflite",
    "onnx/digits.onnx",
    "onnx/digits-int8.onnx",
    "golden.npz",
    "labels.txt",
    "signature.json",
]


def test_an_export_whose_graph_reads_fewer_files_is_verified_without_odd_ones(
    copy_of_export: pathlib.Path, model: Any, validation: ListedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exports of older versions promise nothing of them; their clients re-encode."""

    def read_as_before(encoded: Any) -> Reading:
        upright = read_header(encoded)
        return upright._replace(orientation=tf.constant(0), is_transparent=tf.constant(False))

    def without_new_statuses(output: Any) -> Any:
        old = {"values": ["ok", "not_an_image", "undecodable"], "description": "", "signatures": ["serving_default"]}
        return output.model_copy(update=old) if output.name == "status" else output

    signature = SIGNATURE.model_copy(update={"outputs": [without_new_statuses(o) for o in SIGNATURE.outputs]})
    monkeypatch.setattr("export.convert.image_batch.read_header", read_as_before)
    write_artifact(model, signature, SAVED_MODEL, copy_of_export / "saved_model/digits/3")
    signature.save(copy_of_export)
    Checksums.of(copy_of_export).save(copy_of_export)
    verification = verify_export(copy_of_export, source=validation, max_images=8)
    verification.raise_on_failure()
    assert verification.parity is not None
    titles = [c.title for c in verification.parity.comparisons]
    assert "saved_model (odd_files)" not in titles and "saved_model (odd_pixels)" in titles


def test_an_untouched_export_is_verified_by_checksums_and_golden_images(exported: Exported) -> None:
    verification = verify_export(exported.directory)
    verification.raise_on_failure()
    assert verification.num_files == 31 and verification.num_golden_images == 16
    assert [r.title for r in verification.golden] == [
        c.title for c in exported.report.comparisons if c.input in ("images", "image_bytes")
    ]
    assert verification.answer()["passed"] is True


def test_with_images_the_gate_is_run_again_without_the_run(exported: Exported, validation: ListedImages) -> None:
    verification = verify_export(exported.directory, source=validation, max_images=60)
    verification.raise_on_failure()
    assert verification.parity is not None
    assert verification.parity.reference == "saved_model/digits/3, through images"
    assert verification.parity.num_images == 60


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_found_and_its_file_named(copy_of_export: pathlib.Path, name: str) -> None:
    content = bytearray((copy_of_export / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy_of_export / name).write_bytes(bytes(content))
    with pytest.raises(ParityError, match=f"{name} was changed"):
        verify_export(copy_of_export)


def test_a_missing_and_an_added_file_are_named(copy_of_export: pathlib.Path) -> None:
    added = copy_of_export / "saved_model/digits/4"
    added.mkdir()
    (added / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ParityError, match=r"saved_model/digits/4/saved_model.pb was added"):
        verify_export(copy_of_export)
    (added / "saved_model.pb").unlink()
    (copy_of_export / "onnx/digits.onnx").unlink()
    with pytest.raises(ParityError, match=r"onnx/digits.onnx is missing"):
        verify_export(copy_of_export)


def test_another_model_in_any_format_is_found_by_the_golden_images_alone(
    copy_of_export: pathlib.Path, model: Any, verify_with_checksums_renewed: Callable[[pathlib.Path], Any]
) -> None:
    damaged = copy_of(model)
    kernel, bias = damaged.get_layer("head").get_weights()
    damaged.get_layer("head").set_weights([kernel * 0.5, bias])
    for wanted in FORMATS.values():
        write_artifact(damaged, SIGNATURE, wanted, copy_of_export / Artifact.of(wanted, SIGNATURE, 3).path)
    verification = verify_with_checksums_renewed(copy_of_export)
    assert [r.title for r in verification.golden if not r.failure] == []
    assert verification.answer()["passed"] is False
    with pytest.raises(ParityError, match="saved_model, saved_model/digits/3: a probability of a golden image differs"):
        verification.raise_on_failure()


def test_labels_in_another_order_are_found(
    copy_of_export: pathlib.Path, verify_with_checksums_renewed: Callable[[pathlib.Path], Any]
) -> None:
    labels = (copy_of_export / "labels.txt").read_text().splitlines()
    (copy_of_export / "labels.txt").write_text("\n".join(labels[::-1]) + "\n")
    with pytest.raises(ParityError, match=r"labels.txt does not list the classes"):
        verify_with_checksums_renewed(copy_of_export)


def test_an_artifact_that_does_not_run_is_a_red_result(
    copy_of_export: pathlib.Path, verify_with_checksums_renewed: Callable[[pathlib.Path], Any]
) -> None:
    (copy_of_export / "tflite/digits-int8.tflite").write_bytes(b"not a model")
    verification = verify_with_checksums_renewed(copy_of_export)
    (red,) = [r for r in verification.golden if r.failure]
    assert red.title == "tflite-int8" and "does not load in LiteRT" in red.failure


@pytest.mark.parametrize("name", ["checksums.json", "parity.json", "golden.npz", "signature.json"])
def test_an_unfinished_export_is_refused(
    copy_of_export: pathlib.Path, verify_with_checksums_renewed: Callable[[pathlib.Path], Any], name: str
) -> None:
    (copy_of_export / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        verify_export(copy_of_export) if name == "checksums.json" else verify_with_checksums_renewed(copy_of_export)


def test_a_golden_file_with_pickled_objects_is_refused_unopened(
    copy_of_export: pathlib.Path, verify_with_checksums_renewed: Callable[[pathlib.Path], Any], tmp_path: pathlib.Path
) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (pathlib.Path(tmp_path / "executed").touch, ())

    np.savez(copy_of_export / "golden.npz", encoded_lengths=np.array([Payload()], object))
    with pytest.raises(ArtifactError, match=r"golden.npz does not hold golden images"):
        verify_with_checksums_renewed(copy_of_export)
    assert not (tmp_path / "executed").exists()


def test_a_report_that_points_outside_the_export_is_refused(
    copy_of_export: pathlib.Path, verify_with_checksums_renewed: Callable[[pathlib.Path], Any]
) -> None:
    report = copy_of_export / "parity.json"
    report.write_text(report.read_text().replace("onnx/digits.onnx", "../elsewhere/digits.onnx"))
    with pytest.raises(ArtifactError, match="names an artifact that no export has"):
        verify_with_checksums_renewed(copy_of_export)
