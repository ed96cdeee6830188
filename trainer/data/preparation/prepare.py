"""Prepare a dataset from any source of labelled images: check, split, shuffle and shard them.

There are two passes over the images: the first decodes each one, so that splits are cut from readable images; the
second writes the records in their final order. The state is in a database beside the dataset (see `preparation.state`),
so memory use does not grow, and a killed preparation can resume. The same source, seed and options give the same bytes,
whatever the number of workers and however often it was killed.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import PIL

from trainer.console.task_progress import Advances, ShowProgress, show_nothing
from trainer.data.dataset.manifest import SCHEMA_VERSION, Manifest
from trainer.data.preparation.assign_splits import check_class_counts, choose_splits
from trainer.data.preparation.check_images import check_candidates, resolve_sample_bits
from trainer.data.preparation.fingerprint import fingerprint_of
from trainer.data.preparation.list_images import list_candidates
from trainer.data.preparation.options import PrepareOptions
from trainer.data.preparation.state import CLASS_NAMES, FINGERPRINT, State
from trainer.data.preparation.work_folder import WorkFolder, check_target, open_work_folder
from trainer.data.preparation.write_manifest import check_bad_fraction, make_manifest, write_bad_files
from trainer.data.preparation.write_shards import MAX_SHARDS, SourceChangedError, write_shards
from trainer.data.sources import Source, expand_source, open_source
from trainer.errors import DataError

__all__ = ["MAX_SHARDS", "Advances", "PrepareOptions", "prepare_dataset"]

# Version of the work folder; one of another version is not resumed.
_WORK_VERSION = 2
# The fact of the state that holds the digest of the request.
_REQUEST = "what"


def prepare_dataset(
    source: str,
    out: pathlib.Path,
    *,
    options: PrepareOptions | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: ShowProgress = show_nothing,
    note: Callable[[str], None] = lambda message: None,
) -> Manifest:
    """Prepare `source` (see `sources.open_source`) as the dataset `out` and return its manifest.

    A stopped preparation of `out` is resumed if the source and the options are the same and `restart` is not given;
    `note` is called with a sentence about it.

    Raises:
        DataError: the source is unknown, empty, has one class, or a class with fewer readable images than splits; too
            many of its files cannot be used; `out` exists, or is being prepared by another process.
        TrainerError: `out` cannot be written.
    """
    options = options or PrepareOptions()
    source = expand_source(source)
    out = pathlib.Path(os.path.abspath(out))
    check_target(out, source, overwrite=overwrite)
    opened = open_source(source, options.for_source)
    for remark in opened.remarks:
        note(remark)
    with _ignore_pillow_warnings(), open_work_folder(out, restart=restart) as work:
        check_target(out, source, overwrite=overwrite)
        preparation = _Preparation(opened, source, work, options, progress, note)
        with contextlib.closing(preparation.open_state()) as state:
            manifest = preparation.run(state)
        work.publish()
    return manifest


@contextlib.contextmanager
def _ignore_pillow_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings about malformed files (EXIF, MPO), which the check reports itself.

    Warning filters are global to the process, so this wraps all threads.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextlib.contextmanager
def _source_named(source_text: str) -> Iterator[None]:
    """Name the source in errors of reading it; errors of the disk of `out` pass through."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        where = f" ({e.filename})" if e.filename else ""
        raise DataError(
            f"the source {source_text} cannot be read: {e.strerror or e}{where}; fix that and run the command again"
        ) from e


class _Preparation:
    """The stages in order; each does only what the state does not have yet."""

    def __init__(
        self,
        source: Source,
        source_text: str,
        work: WorkFolder,
        options: PrepareOptions,
        progress: ShowProgress,
        note: Callable[[str], None],
    ) -> None:
        self._source = source
        self._source_text = source_text
        self._work = work
        self._options = options
        self._progress = progress
        self._note = note

    def open_state(self) -> State:
        """Open the state of the same request if there is one, otherwise create an empty state."""
        request = self._request_digest()
        with contextlib.suppress(sqlite3.DatabaseError):
            state = State(self._work.state_file, seed=self._options.seed)
            found = state.fact(_REQUEST)
            if found == request:
                self._work.keep = True
                return state
            state.close()
            if found is not None:
                self._note("the options differ from those of the stopped preparation; starting over")
        self._work.clear()
        self._work.source.mkdir()
        self._work.dataset.mkdir()
        state = State(self._work.state_file, seed=self._options.seed)
        state.set_fact(_REQUEST, request)
        return state

    def run(self, state: State) -> Manifest:
        options, source = self._options, self._source
        with _source_named(self._source_text):
            source.stage(self._work.source, self._progress)
            self._list(state)
        class_names: list[str] = state.fact(CLASS_NAMES)
        check_class_counts(state, class_names, options)
        self._work.keep = True
        check_candidates(state, source, options, self._progress)
        check_bad_fraction(state, options.max_bad_fraction)
        if not state.scalar("SELECT count(*) FROM places"):
            resolve_sample_bits(state, source, options, self._progress)
        if not state.scalar("SELECT count(*) FROM places"):
            choose_splits(state, class_names, options)
        try:
            shards = write_shards(state, source, self._work.dataset, options, self._progress)
        except SourceChangedError:
            state.set_fact(FINGERPRINT, None)  # do not resume from checks of other bytes
            raise
        write_bad_files(state, self._work.dataset)
        manifest = make_manifest(state, source.name, self._source_text, options, shards)
        manifest.save(self._work.dataset)
        return manifest

    def _list(self, state: State) -> None:
        seen = state.fact(FINGERPRINT)
        if seen is not None and seen == fingerprint_of(self._source, self._source_text):
            self._report_progress(state)
            return
        if seen is not None:
            self._note("the source has changed since the preparation was stopped; starting over")
        request = state.fact(_REQUEST)
        state.clear()
        state.set_fact(_REQUEST, request)
        list_candidates(state, self._source, self._source_text, self._options)

    def _report_progress(self, state: State) -> None:
        num_checked = state.scalar("SELECT count(*) FROM checks")
        num_listed = state.scalar("SELECT count(*) FROM candidates")
        num_shards = state.scalar("SELECT count(*) FROM shards")
        self._note(
            f"resuming the stopped preparation: {num_checked:,} of {num_listed:,} images are checked, "
            f"{num_shards:,} shard{'s'[: num_shards != 1]} written"
        )

    def _request_digest(self) -> str:
        """Return a digest of all that determines the dataset except the content of the source."""
        versions = [_WORK_VERSION, SCHEMA_VERSION, PIL.__version__]
        request: list[Any] = [*versions, self._source_text, self._options.decisive()]
        return hashlib.sha256(json.dumps(request).encode()).hexdigest()
