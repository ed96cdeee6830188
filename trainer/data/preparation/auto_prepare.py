"""Prepare raw images that are given as a dataset: once, beside them, and again only if they changed."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shlex
from collections.abc import Callable, Iterator
from typing import NamedTuple

from trainer.console.task_progress import ShowProgress, show_nothing
from trainer.data.dataset.manifest import SCHEMA_VERSION, Manifest, is_prepared
from trainer.data.preparation import prepare
from trainer.data.preparation.fingerprint import fingerprint_of
from trainer.data.preparation.remarks import remarks_on
from trainer.data.sources import FileSource, open_source
from trainer.errors import DataError
from trainer.system import atomic, lock

DATASET_SUFFIX = ".trainer-dataset"
FINGERPRINT_FILE = "prepared_from.json"


class Preparation(NamedTuple):
    """A pending preparation: the source to read and the dataset to write."""

    source: str
    dataset_dir: str
    class_names: list[str]
    num_files: int


def prepare_beside(
    source: pathlib.Path,
    *,
    options: prepare.PrepareOptions | None = None,
    note: Callable[[str], None],
    progress: ShowProgress = show_nothing,
) -> pathlib.Path:
    """Return the dataset `<source>.trainer-dataset` of a folder or listing of images, preparing it first if needed.

    It is reused while the names, sizes and modification times of the images, their labels and `options` stay the same.
    `note` is called with a sentence on what is done. Of several processes, for example under mpirun, one prepares and
    the others wait.

    Raises:
        DataError: as for `prepare.prepare_dataset`, or the folder that contains `source` cannot be written.
    """
    options = options or prepare.PrepareOptions()
    source = source.resolve()
    dataset_dir = _beside(source)
    # Computed before the images are read, so that a change meanwhile is noticed next time.
    fingerprint = _fingerprint(_open(source, options), source, options)
    if _read_fingerprint(dataset_dir) == fingerprint:
        note(f"using {dataset_dir}, prepared from {source} before")
        return dataset_dir
    if not os.access(source.parent, os.W_OK):
        raise DataError(
            f"{source.parent} cannot be written, so {source.name} cannot be prepared beside itself; prepare it "
            f"elsewhere and give that to --data: trainer prepare {source} --out DATASET"
        )
    with _one_at_a_time(dataset_dir, note):
        # Another process may have prepared it while this one waited.
        if _read_fingerprint(dataset_dir) == fingerprint:
            note(f"using {dataset_dir}, prepared from {source} by another process")
        else:
            _prepare(source, dataset_dir, fingerprint, options, note, progress)
    return dataset_dir


def find_preparation(source: pathlib.Path, options: prepare.PrepareOptions | None = None) -> Preparation | None:
    """Return what `prepare_beside` would have to prepare, by listing the source; None if the dataset is up to date.

    Raises:
        DataError: `source` is not a folder or listing of images.
    """
    options = options or prepare.PrepareOptions()
    source = source.resolve()
    dataset_dir = _beside(source)
    opened = _open(source, options)
    if _read_fingerprint(dataset_dir) == _fingerprint(opened, source, options):
        return None
    found = [candidate.class_names for candidate in opened.candidates()]
    names = opened.class_names or sorted({name for class_names in found for name in class_names})
    return Preparation(str(source), str(dataset_dir), list(names), len(found))


def _beside(source: pathlib.Path) -> pathlib.Path:
    return source.parent / f"{source.name}{DATASET_SUFFIX}"


@contextlib.contextmanager
def _one_at_a_time(dataset_dir: pathlib.Path, note: Callable[[str], None]) -> Iterator[None]:
    def on_wait(holder: lock.Holder | None) -> None:
        note(f"waiting for {holder or 'another process'}, which is preparing {dataset_dir}")

    with contextlib.ExitStack() as stack:
        try:
            held = lock.hold(dataset_dir.with_name(f".{dataset_dir.name}.lock"), on_wait=on_wait, remove=True)
            stack.enter_context(held)
        except OSError as e:
            if not lock.has_no_locks(e):
                raise DataError(f"{dataset_dir} cannot be written: {e.strerror}; make room or correct it") from e
        yield


def _prepare(
    source: pathlib.Path,
    dataset_dir: pathlib.Path,
    fingerprint: str,
    options: prepare.PrepareOptions,
    note: Callable[[str], None],
    progress: ShowProgress,
) -> None:
    if is_prepared(dataset_dir):
        note(f"{source} changed since it was prepared; preparing it again as {dataset_dir}")
    else:
        note(f"preparing {source} as {dataset_dir}; this is done once")
    with _advice_in_a_command(source):
        manifest = prepare.prepare_dataset(
            str(source), dataset_dir, options=options, overwrite=True, progress=progress, note=note
        )
    atomic.write_json(dataset_dir / FINGERPRINT_FILE, {"schema_version": SCHEMA_VERSION, "sha256": fingerprint})
    for word, sentence in remarks_on(manifest, str(dataset_dir)):
        if word != "splits" or "train" in manifest.split_origins.values():
            note(f"{word}: {sentence}")


@contextlib.contextmanager
def _advice_in_a_command(source: pathlib.Path) -> Iterator[None]:
    """Complete errors that advise options of `prepare`, which other commands do not have, with a `prepare` command."""
    try:
        yield
    except DataError as e:
        if not re.search(r"--[a-z]", str(e)):
            raise
        dataset = source.parent / f"{source.name}-dataset"
        command = shlex.join(["trainer", "prepare", str(source), "--out", str(dataset)])
        raise DataError(
            f"{e}; such options are taken by: {command} OPTIONS, and the result is given with --data "
            f"{shlex.quote(str(dataset))}"
        ) from e


def _open(source: pathlib.Path, options: prepare.PrepareOptions) -> FileSource:
    with _advice_in_a_command(source):
        opened = open_source(str(source), options.for_source)
    if not isinstance(opened, FileSource):
        raise DataError(f"{source} is not a folder or listing of image files; give one, or a prepared dataset")
    return opened


def _fingerprint(opened: FileSource, source: pathlib.Path, options: prepare.PrepareOptions) -> str:
    seen = [SCHEMA_VERSION, options.decisive(), fingerprint_of(opened, str(source))]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def _read_fingerprint(dataset_dir: pathlib.Path) -> str | None:
    """Return the recorded fingerprint; None if `prepare_beside` did not finish the dataset, or in another version."""
    try:
        Manifest.load(dataset_dir)
        found = json.loads((dataset_dir / FINGERPRINT_FILE).read_text(encoding="utf-8"))["sha256"]
    except (OSError, json.JSONDecodeError, KeyError, DataError):
        return None
    return str(found)
