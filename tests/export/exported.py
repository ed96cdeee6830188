"""A published export, and what its SavedModel asks of a server."""

import dataclasses
import pathlib

from export.files.parity import ParityReport


@dataclasses.dataclass(frozen=True)
class Exported:
    directory: pathlib.Path
    report: ParityReport


def functions_that_ask_for_xla(version: pathlib.Path) -> list[str]:
    """By name, of a SavedModel: a server without XLA cannot run them."""
    from trainer.system.private_api.tensorflow_graph import SavedModel

    content = (version / "saved_model.pb").read_bytes()
    functions = SavedModel.FromString(content).meta_graphs[0].graph_def.library.function
    assert functions
    return [f.signature.name for f in functions if f.attr["_XlaMustCompile"].b]
