"""The rules of what lies beside datasets and exports, and in folders of caches: one function or place for each kind.

| kind | what | last used | in use |
| --- | --- | --- | --- |
| cache | decoded images of a split | modification of its header, at each opening | who has it open shares the header |
| features | outputs of frozen layers | the same | the same |
| xla | a folder of programs compiled by XLA | modification of its `.lock`, at each start | its users share `.lock` |
| unfinished | `.tmp-NAME-1a2b3c4d` of a writer | last write to any file in it | its writer has marked it |
| unfinished | `.OUT.preparing` of `trainer prepare` | the same | `prepare` holds the lock in it |
| unfinished | folders for temporary files of `trainer export` | the same | their process has marked them |

Checkpoints are in `run_rules.py`.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Final

from trainer.cleaning.entry import Entry, Kind, measure
from trainer.data.dataset.derived import FEATURES, HEADER, PIXELS
from trainer.data.preparation import work_folder
from trainer.system import atomic, in_use, lock, xla_cache

_DERIVED: Final[tuple[tuple[str, Kind, str], ...]] = (
    (PIXELS, "cache", "decoded images"),
    (FEATURES, "features", "features of frozen layers"),
)
_TEMPORARY = re.compile(rf"{re.escape(atomic.TEMPORARY_PREFIX)}(.+)-[0-9a-f]{{8}}")


@dataclasses.dataclass(frozen=True)
class MarkedPlace:
    """A file or folder that is an entry by itself, found by one of the functions below; its mark says who uses it."""

    path: pathlib.Path
    rule: Callable[[pathlib.Path], Entry | None]

    def find(self) -> Iterator[Entry]:
        entry = self.rule(self.path)
        if entry is None:
            return
        use = in_use.find_use(entry.mark or entry.path)
        kept_because = _describe_user(entry) if use == "used" else entry.kept_because
        yield dataclasses.replace(entry, kept_because=kept_because, is_certain=use != "unknown")

    def hold(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def find_again(self) -> Iterator[Entry]:
        return self.find()


def derived(path: pathlib.Path) -> Entry | None:
    """Return the entry of a folder with decoded images or features; None if it is something else."""
    for name, kind, what in _DERIVED:
        if (path / name).is_file() and _is_header(path / HEADER):
            used_at_secs = (path / HEADER).stat().st_mtime
            return Entry(
                path=path,
                kind=kind,
                what=f"{what}, {path.name.partition('-')[0]}",
                num_bytes=measure(path)[0],
                used_at_secs=used_at_secs,
                mark=path / HEADER,
            )
    return None


def temporary(path: pathlib.Path) -> Entry | None:
    """Return the entry of what a writer has not finished; None if it is something else."""
    name = _TEMPORARY.fullmatch(path.name)
    if name is None or path.is_symlink():
        return None
    num_bytes, written_at_secs = measure(path)
    return Entry(
        path=path,
        kind="unfinished",
        what=f"{name[1]}, not written to the end",
        num_bytes=num_bytes,
        used_at_secs=written_at_secs,
        mark=path,
    )


def find_temporaries(folder: pathlib.Path) -> Iterator[MarkedPlace]:
    """Yield what writers have not finished anywhere below `folder`."""
    for parent, folders, files in os.walk(folder):
        found = [name for name in sorted([*folders, *files]) if _TEMPORARY.fullmatch(name)]
        yield from (MarkedPlace(pathlib.Path(parent, name), temporary) for name in found)
        folders[:] = sorted(set(folders) - set(found))


def compiled(path: pathlib.Path) -> Entry | None:
    """Return the entry of a folder of programs that XLA has compiled; None if it is something else."""
    if not xla_cache.is_folder_of_programs(path):
        return None
    return Entry(
        path=path,
        kind="xla",
        what=f"{xla_cache.count_programs(path):,} programs compiled by XLA",
        num_bytes=measure(path)[0],
        used_at_secs=(path / xla_cache.LOCK_NAME).stat().st_mtime,
        mark=path / xla_cache.LOCK_NAME,
    )


def scratch(path: pathlib.Path) -> Entry | None:
    """Return the entry of a folder for temporary files of an export; None if it is something else."""
    if path.parent != pathlib.Path(tempfile.gettempdir()) or path.is_symlink():
        return None  # a folder of the user's may have such a name
    if not path.name.startswith(in_use.SCRATCH_PREFIX) or not path.is_dir():
        return None
    num_bytes, written_at_secs = measure(path)
    return Entry(
        path=path,
        kind="unfinished",
        what="temporary files of an export",
        num_bytes=num_bytes,
        used_at_secs=written_at_secs,
        mark=path,
    )


def preparing(path: pathlib.Path) -> Entry | None:
    """Return the entry of a dataset that is not prepared to the end; None if it is something else."""
    out = work_folder.find_work_folder(path)
    if out is None or path.is_symlink():
        return None
    num_bytes, written_at_secs = measure(path)
    reason = f"it has the only copy of {out}, which the same trainer prepare puts back"
    return Entry(
        path=path,
        kind="unfinished",
        what=f"{out.name}, a dataset that is not prepared to the end",
        num_bytes=num_bytes,
        used_at_secs=written_at_secs,
        kept_because=reason if work_folder.holds_only_copy(path, out) else "",
        mark=path / work_folder.LOCK_NAME,
    )


def _describe_user(entry: Entry) -> str:
    if entry.mark is not None and entry.mark.name == work_folder.LOCK_NAME:
        return f"being prepared by {lock.find_holder(entry.mark) or 'another process'}"
    return "in use by a running process"


def _is_header(path: pathlib.Path) -> bool:
    """Return whether a file is the header of a cache or of features; other programs may have files of that name."""
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size < 2**24 else None
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"schema_version", "sha256"} <= content.keys()
