"""Publish exports side by side in a root, with one of them current, and roll back.

    ROOT/1/  ROOT/2/   whole exports as `trainer export` wrote them; they never change
    ROOT/current       a symbolic link to one of them

Deployments read below `ROOT/current`: a TensorFlow Serving base path is `ROOT/current/saved_model/<name>`. Changing
the version is one rename of that link, so that readers always see one whole version, even after a kill.
"""

import contextlib
import os
import pathlib
import shutil
from typing import NamedTuple

from export.files.checksums import Checksums
from export.files.provenance import FILE_NAME as PROVENANCE_FILE
from export.files.provenance import ExportProvenance
from trainer.errors import ArtifactError, UsageError
from trainer.system import atomic, lock
from trainer.system.names import MIN_VERSION, check_version, parse_version

CURRENT = "current"
_LOCK_FILE = ".lock"


class VersionChange(NamedTuple):
    """The current version before and after."""

    before: int | None
    now: int


def next_version(export_dir: pathlib.Path, model_name: str) -> int:
    """Return the default version of an export to `export_dir`: one above that of the same model there, or the first.

    Raises ArtifactError if there is an export with a malformed provenance.
    """
    if not (export_dir / PROVENANCE_FILE).is_file():
        return MIN_VERSION
    before = ExportProvenance.load(export_dir)
    return before.version + 1 if before.model_name == model_name else MIN_VERSION


def find_versions(root: pathlib.Path) -> list[int]:
    """Return the versions of `root`, ascending; half-written ones have other names."""
    if not root.is_dir():
        return []
    named = ((entry.name, parse_version(entry.name)) for entry in root.iterdir() if not entry.is_symlink())
    return sorted(version for name, version in named if version and name == str(version) and (root / name).is_dir())


def current_version(root: pathlib.Path) -> int | None:
    """Return the version that `ROOT/current` links to, if any."""
    link = root / CURRENT
    return parse_version(os.readlink(link)) if link.is_symlink() else None


def publish_version(export_dir: pathlib.Path, root: pathlib.Path, *, allow_failed: bool = False) -> VersionChange:
    """Copy an export into `root` under its version and make it current; idempotent.

    If its version was chosen automatically and `root` already has a later one, it gets the next version.

    With `allow_failed`, artifacts over budget and marked as such are accepted.

    Raises:
        ArtifactError: `export_dir` is not a finished export, is of another model than `root`, or has a version that is
            taken by another export.
        ParityError: a file was changed, or an artifact is over budget; nothing is published.
        UsageError: `root` cannot hold versions.
    """
    # These import TensorFlow, which rolling back does not need.
    from export.files.parity import ParityReport
    from export.versions.renumber import renumber

    checksums = Checksums.load(export_dir)
    provenance = ExportProvenance.load(export_dir)
    report = ParityReport.load(export_dir)
    (report if allow_failed else report.allow_nothing()).raise_on_failure()
    _check_root(root)
    root.mkdir(parents=True, exist_ok=True)
    with lock.hold(root / _LOCK_FILE):
        atomic.remove_temporaries(root)
        versions = find_versions(root)
        _check_model(root, versions, provenance)
        there = _find_published(root, versions, checksums)
        if there is not None:
            return _make_current(root, there)
        version = _choose_version(root, versions, provenance)
        with atomic.new_directory(root / str(version)) as directory:
            shutil.copytree(export_dir, directory, dirs_exist_ok=True)
            # Verify the copy: a partial read, or a file changed meanwhile, is not published.
            checksums.verify(directory)
            if version != provenance.version:
                renumber(directory, version)
        return _make_current(root, version)


def roll_back(root: pathlib.Path, to: int | None = None) -> VersionChange:
    """Make another version current: `to`, or the highest below the current one.

    Raises:
        ArtifactError: `root` is not a publication root, or has no such version.
        ParityError: a file of that version was changed; the current version stays.
    """
    if to is not None:
        check_version(to)
    if current_version(root) is None:
        raise ArtifactError(f"{root} has no current version; fill it with: trainer publish EXPORT {root}")
    with lock.hold(root / _LOCK_FILE):
        # The current version may have changed while another writer held the lock.
        to = _choose_earlier_version(root, to)
        Checksums.load(root / str(to)).verify(root / str(to))
        return _make_current(root, to)


def _choose_earlier_version(root: pathlib.Path, to: int | None) -> int:
    before, versions = current_version(root), find_versions(root)
    there = f"it has {', '.join(map(str, versions)) or 'none'}"
    if to is None:
        to = max((version for version in versions if before is not None and version < before), default=None)
        if to is None:
            raise ArtifactError(
                f"{root} has no version below {before}, the current one ({there}); choose one with --to"
            )
    if to not in versions:
        raise ArtifactError(f"{root} has no version {to} ({there}); choose one of them with --to")
    return to


def _find_published(root: pathlib.Path, versions: list[int], checksums: Checksums) -> int | None:
    """Return the version that is a copy of the export with these checksums, perhaps renumbered."""
    for version in reversed(versions):
        # An unreadable version is not a copy, and does not prevent publishing others.
        with contextlib.suppress(ArtifactError):
            directory = root / str(version)
            original = ExportProvenance.load(directory).renumbered_from
            if Checksums.load(directory) == checksums:
                return version
            if original is not None and original.checksums_sha256 == checksums.content_hash():
                return version
    return None


def _choose_version(root: pathlib.Path, versions: list[int], provenance: ExportProvenance) -> int:
    version, last = provenance.version, max(versions, default=0)
    if provenance.version_counts_up and version <= last:
        check_version(last + 1)
        return last + 1
    if version in versions:
        raise ArtifactError(
            f"{root / str(version)} is another export of version {version}; export this one again with "
            f"--version {last + 1}"
        )
    return version


def _make_current(root: pathlib.Path, version: int) -> VersionChange:
    before = current_version(root)
    if before != version:
        link = root / f"{atomic.TEMPORARY_PREFIX}{CURRENT}"
        link.unlink(missing_ok=True)
        link.symlink_to(str(version))
        os.replace(link, root / CURRENT)
        atomic.sync_directory(root)
    return VersionChange(before, version)


def _check_root(root: pathlib.Path) -> None:
    if ":/" in str(root):
        raise UsageError(f"{root} is not a local path, where a link can be renamed; mount the store and give its path")
    is_root = (root / CURRENT).is_symlink() or (root / _LOCK_FILE).exists()
    if root.exists() and not (root.is_dir() and (is_root or not any(root.iterdir()))):
        raise UsageError(f"{root} holds something other than versions of a model; give a new directory")


def _check_model(root: pathlib.Path, versions: list[int], provenance: ExportProvenance) -> None:
    names = {ExportProvenance.load(root / str(version)).model_name for version in versions[-1:]}
    for name in names - {provenance.model_name}:
        raise ArtifactError(
            f"{root} holds versions of {name}, not of {provenance.model_name}; give another root, or "
            f"export with --name {name}"
        )
