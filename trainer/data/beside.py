"""Raw images given where a dataset is expected: prepared once, beside them, and again only when they changed."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable

from trainer import atomic
from trainer.data import prepare
from trainer.data.manifest import BAD_FILES_NAME, SCHEMA_VERSION, Manifest, is_prepared
from trainer.data.preparation.fingerprint import fingerprint_of
from trainer.data.sources import FileSource, open_source
from trainer.data.task_progress import ShowProgress, show_nothing
from trainer.errors import DataError

DATASET_SUFFIX = ".trainer-dataset"
FINGERPRINT_FILE = "prepared_from.json"


def prepare_beside(
    source: pathlib.Path,
    *,
    options: prepare.PrepareOptions | None = None,
    note: Callable[[str], None],
    progress: ShowProgress = show_nothing,
) -> pathlib.Path:
    """The dataset `<source>.trainer-dataset` of a folder or listing of images; prepared first where need be.

    It is used again while the names, sizes and modification times of the images, their labels and `options` are
    the same. `note` is told in a sentence what is done.

    Raises:
        DataError: see `prepare.prepare_dataset`, or the folder around `source` cannot be written.
    """
    options = options or prepare.PrepareOptions()
    source = source.resolve()
    dataset_dir = source.parent / f"{source.name}{DATASET_SUFFIX}"
    # Taken before the images are read: a change while they are read shows the next time.
    fingerprint = _fingerprint(str(source), options)
    if is_prepared(dataset_dir):
        if _read_fingerprint(dataset_dir) == fingerprint:
            note(f"using {dataset_dir}, prepared from {source} before")
            return dataset_dir
        note(f"{source} changed since it was prepared; preparing it again as {dataset_dir}")
    else:
        note(f"preparing {source} as {dataset_dir}; this is done once")
    if not os.access(source.parent, os.W_OK):
        raise DataError(
            f"{source.parent} cannot be written, so {source.name} cannot be prepared beside itself; prepare it "
            f"elsewhere and give that to --data: trainer prepare {source} --out DATASET"
        )
    manifest = prepare.prepare_dataset(
        str(source), dataset_dir, options=options, overwrite=True, progress=progress, note=note
    )
    atomic.write_json(dataset_dir / FINGERPRINT_FILE, {"schema_version": SCHEMA_VERSION, "sha256": fingerprint})
    if manifest.num_bad_files:
        num_bad = sum(manifest.num_bad_files.values())
        note(f"{num_bad:,} files cannot be used and are left out; {dataset_dir / BAD_FILES_NAME} lists them")
    return dataset_dir


def _fingerprint(source: str, options: prepare.PrepareOptions) -> str:
    opened = open_source(source, options.for_source)
    if not isinstance(opened, FileSource):
        raise DataError(f"{source} is not a folder or listing of image files; give one, or a prepared dataset")
    seen = [SCHEMA_VERSION, options.decisive(), fingerprint_of(opened, source)]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def _read_fingerprint(dataset_dir: pathlib.Path) -> str | None:
    """None where the dataset was not finished by `prepare_beside`, or is of another version."""
    try:
        Manifest.load(dataset_dir)
        found = json.loads((dataset_dir / FINGERPRINT_FILE).read_text())["sha256"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError, DataError):
        return None
    return str(found)
