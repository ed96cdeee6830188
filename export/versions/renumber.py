"""Give an export another version, everywhere the number occurs, with new checksums."""

import pathlib
import re

from export.convert.tflite_metadata import with_metadata
from export.documents.model_card import FILE_NAME as MODEL_CARD_FILE
from export.documents.readme import FILE_NAME as README_FILE
from export.files.checksums import Checksums
from export.files.formats import FORMATS, SAVED_MODELS
from export.files.latency import FILE_NAME as LATENCY_FILE
from export.files.parity import FILE_NAME as PARITY_FILE
from export.files.parity import ParityReport
from export.files.provenance import ExportProvenance, OriginalExport
from export.files.signature import Signature

# Files that contain the path of the SavedModel.
_NAMING_FILES = (PARITY_FILE, LATENCY_FILE, MODEL_CARD_FILE, README_FILE)


def renumber(export_dir: pathlib.Path, version: int) -> None:
    """Change the version of an export that nobody reads yet; its provenance records the original.

    Raises ArtifactError if `export_dir` is not an export.
    """
    provenance, signature = ExportProvenance.load(export_dir), Signature.load(export_dir)
    original = OriginalExport(version=provenance.version, checksums_sha256=Checksums.load(export_dir).content_hash())
    for artifact in ParityReport.load(export_dir).artifacts():
        path = export_dir / artifact.path
        if FORMATS[artifact.format].kind == "tflite":
            path.write_bytes(with_metadata(path.read_bytes(), signature, version))
        elif FORMATS[artifact.format].kind == "saved_model":
            path.rename(path.with_name(str(version)))
    _rename_in_files(export_dir, signature.model_name, provenance.version, version)
    provenance.model_copy(
        update={
            "version": version,
            "renumbered_from": original,
            "command": _with_version(provenance.command, version),
        }
    ).save(export_dir)
    Checksums.of(export_dir).save(export_dir)


def _rename_in_files(export_dir: pathlib.Path, model_name: str, old: int, new: int) -> None:
    formats = "|".join(re.escape(wanted.name) for wanted in SAVED_MODELS)
    path = re.compile(rf"\b({formats})/{re.escape(model_name)}/{old}\b")
    for name in _NAMING_FILES:
        file = export_dir / name
        if file.exists():
            text = file.read_text(encoding="utf-8")
            file.write_text(path.sub(rf"\1/{model_name}/{new}", text), encoding="utf-8")


def _with_version(command: list[str], version: int) -> list[str]:
    """Return the command that made the export, with another `--version`."""
    place = command.index("--version") + 1
    return [*command[:place], str(version), *command[place + 1 :]]
