"""One trained classifier of real digits, and one export of it in every format."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trainer.system import tf_runtime

tf_runtime.configure(use_gpus=False)

from digits_classifier import SIGNATURE, ListedImages, build_model, copy_of, read_digits, train_model  # noqa: E402
from exported import Exported  # noqa: E402

from export.files.formats import FORMATS  # noqa: E402
from export.files.parity import ParityReport  # noqa: E402
from export.files.provenance import Provenance  # noqa: E402
from export.pipeline.make_export import ExportRequest, make_export  # noqa: E402
from tests.build_once import build_once  # noqa: E402


@pytest.fixture(scope="session")
def validation() -> ListedImages:
    return read_digits("validation")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    def train(directory: pathlib.Path) -> None:
        np.savez(directory / "weights.npz", *train_model().get_weights())

    trained = build_model()
    with np.load(build_once(tmp_path_factory, "digits_classifier", train) / "weights.npz") as arrays:
        trained.set_weights([arrays[name] for name in arrays.files])
    return trained


@pytest.fixture(scope="session")
def export_request(model: Any, validation: ListedImages) -> ExportRequest:
    return ExportRequest(
        model=model,
        signature=SIGNATURE,
        version=3,
        formats=list(FORMATS.values()),
        validation=validation,
        training=read_digits("train"),
        provenance=Provenance(
            run_name="digits-run",
            run_identity="ab" * 32,
            global_step=228,
            which="best",
            backbone="small_cnn",
            weights="none",
            precision="float32",
            num_train_examples=1200,
            config_yaml="train:\n  epochs: 6\n",
        ),
        max_parity_images=None,
        build_bfloat16=lambda: copy_of(model, "mixed_bfloat16"),
    )


@pytest.fixture(scope="session")
def exported(export_request: ExportRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The published export; read it, and change only a `copy_of_export`."""

    def build(directory: pathlib.Path) -> None:
        report = make_export(export_request, directory / "digits")
        returned = {key: value for key, value in report.answer().items() if key != "passed"}
        (directory / "returned.json").write_text(json.dumps(returned))

    built = build_once(tmp_path_factory, "export", build)
    report = ParityReport.model_validate_json((built / "returned.json").read_text())
    return Exported(built / "digits", report)


@pytest.fixture
def copy_of_export(exported: Exported, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(exported.directory, tmp_path / "copy"))


@pytest.fixture
def verify_with_checksums_renewed() -> Callable[[pathlib.Path], Any]:
    """Verifies an export whose checksums were written anew after it was changed: only the answers can tell."""
    from export.files.checksums import Checksums
    from export.gate.replay import verify_export

    def verify(directory: pathlib.Path) -> Any:
        Checksums.of(directory).save(directory)
        return verify_export(directory)

    return verify
