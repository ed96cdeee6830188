"""Where a dataset is written: nothing is overwritten unasked, and it appears whole or not at all."""

import contextlib
import fcntl
import glob
import os
import pathlib
import shutil
from collections.abc import Iterator

from trainer import atomic
from trainer.data.manifest import is_prepared
from trainer.errors import DataError, TrainerError


def check_target(out: pathlib.Path, source: str, *, overwrite: bool) -> None:
    """Raises DataError where `out` is taken, or lies in the source or around it."""
    source_path = pathlib.Path(source)
    if source_path.exists():
        inner, outer = out.resolve(), source_path.resolve()
        if inner.is_relative_to(outer) or outer.is_relative_to(inner):
            raise DataError(f"--out {out} and the source {source} lie one in the other; give --out a folder beside it")
    if is_prepared(out):
        if not overwrite:
            raise DataError(f"{out} holds a prepared dataset already; give --overwrite, or another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        # Also with --overwrite: what is removed must be known to be a dataset.
        raise DataError(f"{out} exists and is not a prepared dataset; give --out a new folder")


@contextlib.contextmanager
def new_dataset(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder to write a dataset into, which takes the name `out` at the end of the block.

    First removes what killed writers of `out` left. An exception or Ctrl-C in the block leaves `out` as it was.

    Raises:
        TrainerError: the disk is full, or `out` cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        # The lock outlives the renaming: until then the folder looks like a leftover to others.
        with contextlib.ExitStack() as lock, atomic.new_directory(out) as directory:
            lock.enter_context(_locked(directory))
            yield directory
    except OSError as e:
        raise TrainerError(f"{out} cannot be written: {e.strerror or e}; nothing of it was left") from e


def _remove_leftovers(out: pathlib.Path) -> None:
    for leftover in out.parent.glob(f"{atomic.TEMPORARY_PREFIX}{glob.escape(out.name)}-*"):
        # A writer at work holds the lock; a killed one lost it with its process. Two may be cleaning at once.
        with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(leftover) as is_abandoned:
            if is_abandoned:
                shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: pathlib.Path) -> Iterator[bool]:
    """Holds `directory` alone; yields False where its file system (some network ones) has no locks on folders.

    Raises BlockingIOError where another process holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = True
        except BlockingIOError:
            raise
        except OSError:
            is_held = False
        yield is_held
    finally:
        os.close(descriptor)
