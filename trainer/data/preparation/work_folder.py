"""The hidden folder in which a dataset is prepared, so that it appears whole or not at all and a kill loses little.

It lies beside `out` and outlives its process, so that the same command can resume. It is removed once its dataset has
been renamed to `out`:

    .<out>.preparing/   lock           held by the process that prepares
                        state.sqlite   see `preparation.state`
                        source/        what the source has downloaded or unpacked
                        dataset/       finished shards and an unfinished one
                        replaced/      the old `out`, between two renames
"""

import contextlib
import glob
import pathlib
import re
import shutil
import sqlite3
import uuid
from collections.abc import Iterator

from trainer.data.dataset.manifest import is_prepared
from trainer.errors import DataError, TrainerError
from trainer.system import atomic, lock

LOCK_NAME = "lock"
_REPLACED = "replaced"
_DISK_ERRORS = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_IOERR_WRITE", "SQLITE_READONLY", "SQLITE_CANTOPEN")


def check_target(out: pathlib.Path, source: str, *, overwrite: bool) -> None:
    """Raise DataError if `out` exists, or if it contains the source or the source contains it."""
    source_path = pathlib.Path(source)
    if source_path.exists():
        inner, outer = out.resolve(), source_path.resolve()
        if inner.is_relative_to(outer) or outer.is_relative_to(inner):
            raise DataError(f"--out {out} and the source {source} overlap; give --out a folder beside the source")
    if is_prepared(out):
        if not overwrite:
            raise DataError(f"{out} holds a prepared dataset already; give --overwrite, or another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        # Also with --overwrite: only a known dataset is removed.
        raise DataError(f"{out} exists and is not a prepared dataset; give --out a new folder")


class WorkFolder:
    """The folder beside `out` in which a dataset is prepared; created by `open_work_folder`.

    keep: true if it contains anything that the same command could resume from.
    """

    def __init__(self, path: pathlib.Path, out: pathlib.Path) -> None:
        self._path = path
        self._out = out
        self.keep = False

    @property
    def state_file(self) -> pathlib.Path:
        return self._path / "state.sqlite"

    @property
    def source(self) -> pathlib.Path:
        return self._path / "source"

    @property
    def dataset(self) -> pathlib.Path:
        return self._path / "dataset"

    def clear(self) -> None:
        """Remove the contents of the folder."""
        for child in [child for child in self._path.iterdir() if child.name != LOCK_NAME]:
            shutil.rmtree(child) if child.is_dir() else child.unlink()

    def put_back(self) -> None:
        """Restore the old `out` after a kill between the two renames of `publish`."""
        replaced = self._path / _REPLACED
        if replaced.exists() and not self._out.exists():
            replaced.rename(self._out)

    def publish(self) -> None:
        """Rename `dataset`, whose files are flushed, to `out`, and remove the rest."""
        atomic.sync_directory(self.dataset)
        if self._out.exists():
            replaced = self._path / _REPLACED
            shutil.rmtree(replaced, ignore_errors=True)
            self._out.rename(replaced)
        self.dataset.rename(self._out)
        atomic.sync_directory(self._out.parent)
        _remove(self._path)


def path_beside(out: pathlib.Path) -> pathlib.Path:
    """Return the path of the work folder of `out`."""
    return out.parent / f".{out.name}.preparing"


def find_work_folder(path: pathlib.Path) -> pathlib.Path | None:
    """Return `out` if `path` is its work folder, or what is left of one that was being removed; otherwise None."""
    found = re.fullmatch(r"\.(.+)\.preparing(-[0-9a-f]{8})?", path.name)
    if found is None or not path.is_dir() or not (found[2] or (path / LOCK_NAME).exists()):
        return None
    return path.with_name(found[1])


def holds_only_copy(path: pathlib.Path, out: pathlib.Path) -> bool:
    """Return whether a kill left the dataset `out` in its work folder, where the next `prepare` finds it."""
    return (path / _REPLACED).exists() and not out.exists()


@contextlib.contextmanager
def open_work_folder(out: pathlib.Path, *, restart: bool) -> Iterator[WorkFolder]:
    """Lock and yield the work folder of `out`, with what an earlier process left unless `restart` is given.

    If an exception leaves the block, the folder is kept if it can be resumed; `out` is unchanged.

    Raises:
        DataError: another process is preparing `out`.
        TrainerError: the disk is full, or `out` cannot be written.
    """
    path = path_beside(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path, out):
            work = WorkFolder(path, out)
            for leftover in path.parent.glob(f"{glob.escape(path.name)}-*"):  # from a kill during removal
                shutil.rmtree(leftover, ignore_errors=True)
            work.put_back()
            if restart:
                work.clear()
            work.source.mkdir(exist_ok=True)
            work.dataset.mkdir(exist_ok=True)
            try:
                yield work
            except BaseException:
                if not work.keep and not any(work.source.iterdir()):
                    _remove(path)
                raise
    except (OSError, sqlite3.OperationalError) as e:
        if isinstance(e, sqlite3.OperationalError) and e.sqlite_errorname not in _DISK_ERRORS:
            raise
        problem = (isinstance(e, OSError) and e.strerror) or e
        raise TrainerError(
            f"{out} cannot be written: {problem}; make room or fix it, and run the same command again to resume"
        ) from e


@contextlib.contextmanager
def _locked(path: pathlib.Path, out: pathlib.Path) -> Iterator[None]:
    """Lock the folder `path`, creating it if needed."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.hold_or_refuse(path / LOCK_NAME, owner=uuid.uuid4().hex))
        except lock.HeldError as e:
            raise DataError(
                f"{out} is being prepared by {e.holder or 'another process'}; wait until that is done, or give "
                "another --out"
            ) from None
        except OSError as e:
            if not lock.has_no_locks(e):
                raise
        yield


def _remove(path: pathlib.Path) -> None:
    """Rename and remove a work folder, so that a process that starts now creates its own."""
    removed = path.with_name(f"{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        path.rename(removed)
    except OSError:
        return
    shutil.rmtree(removed, ignore_errors=True)
