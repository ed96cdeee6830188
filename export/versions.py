"""A publication root: the versions of one model side by side, one of them current, and the way back.

    ROOT/1/  ROOT/2/   whole exports, as `trainer export` wrote them; never changed once they are there
    ROOT/current       a symbolic link to one of them

Whoever deploys reads below `ROOT/current`: a TensorFlow Serving base path is `ROOT/current/saved_model/<name>`.
Changing the version is one rename of that link, so that readers see the one or the other, whole, also after a kill at
any moment.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import NamedTuple

from export.checksums import Checksums
from export.provenance import ExportProvenance
from trainer import atomic
from trainer.errors import ArtifactError, UsageError

CURRENT = "current"
_LOCK_FILE = ".lock"


class Switch(NamedTuple):
    """What was current before, and what is now."""

    before: int | None
    now: int


def find_versions(root: pathlib.Path) -> list[int]:
    """The versions of `root`, ascending; half-written ones have other names."""
    if not root.is_dir():
        return []
    names = (entry.name for entry in root.iterdir() if entry.is_dir() and not entry.is_symlink())
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def current_version(root: pathlib.Path) -> int | None:
    """The version that `ROOT/current` names, if there is one."""
    link = root / CURRENT
    if not link.is_symlink():
        return None
    name = os.readlink(link)
    return int(name) if name.isascii() and name.isdigit() else None


def publish_version(export_dir: pathlib.Path, root: pathlib.Path, *, allow_failed: bool = False) -> Switch:
    """Copies an export into `root` under its version and makes it current. Publishing the same export twice is once.

    allow_failed: also where an artifact is over its budget and marked as such.

    Raises:
        ArtifactError: `export_dir` is no finished export, is of another model than `root`, or has the number of another
            export there.
        ParityError: a file of it was changed, or an artifact is over its budget; nothing is published.
        UsageError: `root` is no place for versions.
    """
    from export.parity import ParityReport  # needs TensorFlow, which the way back does without

    checksums = Checksums.load(export_dir)
    provenance = ExportProvenance.load(export_dir)
    report = ParityReport.load(export_dir)
    (report if allow_failed else report.allow_nothing()).raise_on_failure()
    _check_root(root)
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root):
        atomic.remove_temporaries(root)
        versions = find_versions(root)
        _check_model(root, versions, provenance)
        target = root / str(provenance.version)
        if provenance.version not in versions:
            with atomic.new_directory(target) as directory:
                shutil.copytree(export_dir, directory, dirs_exist_ok=True)
                # Of the copy: what was read half, or changed meanwhile, does not get the name.
                checksums.verify(directory)
        elif Checksums.load(target) != checksums:
            raise ArtifactError(
                f"{target} is another export of version {provenance.version}; export this one again with "
                f"--version {versions[-1] + 1}"
            )
        return _make_current(root, provenance.version)


def roll_back(root: pathlib.Path, to: int | None = None) -> Switch:
    """Makes another version current: `to`, or the highest below the current one.

    Raises:
        ArtifactError: `root` is no publication root, or has no such version.
        ParityError: a file of that version was changed since; the current one stays.
    """
    before, versions = current_version(root), find_versions(root)
    there = f"it has {', '.join(map(str, versions)) or 'none'}"
    if before is None:
        raise ArtifactError(f"{root} has no current version; fill it with: trainer publish EXPORT {root}")
    if to is None:
        to = max((version for version in versions if version < before), default=None)
        if to is None:
            raise ArtifactError(
                f"{root} has no version below {before}, the current one ({there}); choose one with --to"
            )
    if to not in versions:
        raise ArtifactError(f"{root} has no version {to} ({there}); choose one of them with --to")
    with _locked(root):
        Checksums.load(root / str(to)).verify(root / str(to))
        return _make_current(root, to)


def _make_current(root: pathlib.Path, version: int) -> Switch:
    before = current_version(root)
    if before != version:
        link = root / f"{atomic.TEMPORARY_PREFIX}{CURRENT}"
        link.unlink(missing_ok=True)
        link.symlink_to(str(version))
        os.replace(link, root / CURRENT)
        atomic.sync_directory(root)
    return Switch(before, version)


def _check_root(root: pathlib.Path) -> None:
    if ":/" in str(root):
        raise UsageError(f"{root} is no local path; a publication root has a link that is renamed: mount the store")
    is_root = (root / CURRENT).is_symlink() or (root / _LOCK_FILE).exists()
    if root.exists() and not (root.is_dir() and (is_root or not any(root.iterdir()))):
        raise UsageError(f"{root} holds something else than versions of a model; give a new directory")


def _check_model(root: pathlib.Path, versions: list[int], provenance: ExportProvenance) -> None:
    names = {ExportProvenance.load(root / str(version)).model_name for version in versions[-1:]}
    for name in names - {provenance.model_name}:
        raise ArtifactError(
            f"{root} holds versions of {name}, not of {provenance.model_name}; give another root, or "
            f"export with --name {name}"
        )


@contextlib.contextmanager
def _locked(root: pathlib.Path) -> Iterator[None]:
    """One writer at a time; the lock of one that was killed is free."""
    with (root / _LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
