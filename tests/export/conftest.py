"""One trained classifier of real digits, and one export of it in every format."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from trainer.system import tf_runtime

tf_runtime.configure(use_gpus=False)

from digits_classifier import SIGNATURE, ListedImages, copy_of, read_digits, train_model  # noqa: E402

from export.files.formats import FORMATS  # noqa: E402
from export.files.parity import ParityReport  # noqa: E402
from export.files.provenance import Provenance  # noqa: E402
from export.pipeline.make_export import ExportRequest, make_export  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Exported:
    directory: pathlib.Path
    report: ParityReport


@pytest.fixture(scope="session")
def validation() -> ListedImages:
    return read_digits("validation")


@pytest.fixture(scope="session")
def model() -> Any:
    return train_model()


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
    directory = tmp_path_factory.mktemp("export") / "digits"
    return Exported(directory, make_export(export_request, directory))


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


def functions_that_ask_for_xla(version: pathlib.Path) -> list[str]:
    """By name, of a SavedModel: a server without XLA cannot run them."""
    from trainer.system.private_api.tensorflow_graph import SavedModel

    content = (version / "saved_model.pb").read_bytes()
    functions = SavedModel.FromString(content).meta_graphs[0].graph_def.library.function
    assert functions
    return [f.signature.name for f in functions if f.attr["_XlaMustCompile"].b]
