"""A publication root: the versions of one model side by side, one of them current, and the way back.

    ROOT/1/  ROOT/2/   whole exports, as `trainer export` wrote them; never changed once they are there
    ROOT/current       a symbolic link to one of them

Whoever deploys reads below `ROOT/current`: a TensorFlow Serving base path is `ROOT/current/saved_model/<name>`.
Changing the version is one rename of that link, so that readers see the one or the other, whole, also after a kill at
any moment.
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


class Switch(NamedTuple):
    """What was current before, and what is now."""

    before: int | None
    now: int


def next_version(export_dir: pathlib.Path, model_name: str) -> int:
    """The version of an export to `export_dir` that nobody gave one: above that of the same model there, or the first.

    Raises ArtifactError where an export lies there that does not say what it is.
    """
    if not (export_dir / PROVENANCE_FILE).is_file():
        return MIN_VERSION
    before = ExportProvenance.load(export_dir)
    return before.version + 1 if before.model_name == model_name else MIN_VERSION


def find_versions(root: pathlib.Path) -> list[int]:
    """The versions of `root`, ascending; half-written ones have other names."""
    if not root.is_dir():
        return []
    named = ((entry.name, parse_version(entry.name)) for entry in root.iterdir() if not entry.is_symlink())
    return sorted(version for name, version in named if version and name == str(version) and (root / name).is_dir())


def current_version(root: pathlib.Path) -> int | None:
    """The version that `ROOT/current` names, if there is one."""
    link = root / CURRENT
    return parse_version(os.readlink(link)) if link.is_symlink() else None


def publish_version(export_dir: pathlib.Path, root: pathlib.Path, *, allow_failed: bool = False) -> Switch:
    """Copies an export into `root` under its version and makes it current. Publishing the same export twice is once.

    Where nobody asked for that version, and `root` has gone as far already, it gets the next one.

    allow_failed: also where an artifact is over its budget and marked as such.

    Raises:
        ArtifactError: `export_dir` is no finished export, is of another model than `root`, or has the number of another
            export there.
        ParityError: a file of it was changed, or an artifact is over its budget; nothing is published.
        UsageError: `root` is no place for versions.
    """
    # They need TensorFlow, which the way back does without.
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
            # Of the copy: what was read half, or changed meanwhile, does not get the name.
            checksums.verify(directory)
            if version != provenance.version:
                renumber(directory, version)
        return _make_current(root, version)


def roll_back(root: pathlib.Path, to: int | None = None) -> Switch:
    """Makes another version current: `to`, or the highest below the current one.

    Raises:
        ArtifactError: `root` is no publication root, or has no such version.
        ParityError: a file of that version was changed since; the current one stays.
    """
    if to is not None:
        check_version(to)
    if current_version(root) is None:
        raise ArtifactError(f"{root} has no current version; fill it with: trainer publish EXPORT {root}")
    with lock.hold(root / _LOCK_FILE):
        # What is current may have changed while another writer had the lock.
        to = _version_to_go_back_to(root, to)
        Checksums.load(root / str(to)).verify(root / str(to))
        return _make_current(root, to)


def _version_to_go_back_to(root: pathlib.Path, to: int | None) -> int:
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
    """The version that is a copy of the export with these checksums, under whatever number."""
    for version in reversed(versions):
        # A version that cannot be read is no copy; it does not keep others from being published.
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
