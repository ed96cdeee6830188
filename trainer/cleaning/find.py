"""Look below folders for places with something that could be removed."""

import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence

from trainer.cleaning import rules
from trainer.cleaning.entry import Place
from trainer.cleaning.run_rules import RunPlace
from trainer.data.dataset.derived import CACHE_SUFFIX, FEATURES_SUFFIX
from trainer.data.preparation import work_folder
from trainer.data.preparation.auto_prepare import DATASET_SUFFIX
from trainer.errors import UsageError
from trainer.run.run_dir import RunDir
from trainer.system import in_use
from trainer.system.atomic import TEMPORARY_PREFIX

_RULES_OF_FOLDERS = (rules.derived, rules.compiled, rules.preparing, rules.scratch)
Note = Callable[[str], None]


def find_places(paths: Sequence[pathlib.Path], note: Note) -> list[Place]:
    """Return the places in and beside `paths`; without any, those below the working directory and of exports.

    Args:
        paths: runs, datasets, exports, folders of caches, or folders that hold some of these.
        note: told about folders that cannot be read, and who is being waited for.

    Raises:
        UsageError: there is nothing at a path.
    """
    found: dict[Place, None] = {}
    for path in paths or [pathlib.Path()]:
        # Links below are not followed, but one that is given is meant.
        path = path.resolve()
        beside = list(_beside(path))
        if not path.exists() and not beside:
            raise UsageError(
                f"{path} does not exist; give trainer clean runs, datasets, exports, caches, or a folder with some"
            )
        for each in (path, *beside):
            found.update(dict.fromkeys(_walk(each, note)))
    if not paths:
        scratch = sorted(pathlib.Path(tempfile.gettempdir()).glob(f"{in_use.SCRATCH_PREFIX}*"))
        found.update(dict.fromkeys(rules.MarkedPlace(path, rules.scratch) for path in scratch))
    return list(found)


def _beside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield what belongs to the dataset, the images or the export at `path` and lies beside it."""
    names = [path.name, f"{path.name}{DATASET_SUFFIX}"]
    for name in names:
        for suffix in (CACHE_SUFFIX, FEATURES_SUFFIX):
            if (derived := path.with_name(f"{name}{suffix}")).is_dir():
                yield derived
    if (prepared := path.with_name(names[1])).is_dir():
        yield prepared
    try:
        siblings = sorted(path.parent.iterdir()) if path.name else []
    except OSError:
        return
    for sibling in siblings:
        is_work = (out := work_folder.find_work_folder(sibling)) is not None and out.name in names
        if is_work or any(sibling.name.startswith(f"{TEMPORARY_PREFIX}{name}-") for name in names):
            yield sibling


def _walk(path: pathlib.Path, note: Note) -> Iterator[Place]:
    """Yield the places at and below `path`. Hidden folders of others, and links, are passed over."""
    if (place := _place_at(path, note)) is not None:
        yield place
        return
    if not path.is_dir():
        return
    try:
        with os.scandir(path) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError as e:
        note(f"note: {path} is passed over, since it cannot be read ({e.strerror})")
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from _walk(pathlib.Path(entry.path), note)
        elif entry.name.startswith(".") and (place := _place_at(pathlib.Path(entry.path), note)) is not None:
            yield place


def _place_at(path: pathlib.Path, note: Note) -> Place | None:
    """Return the place that `path` itself is; None if it is something else."""
    if path.is_symlink():
        return None
    if path.name.startswith(TEMPORARY_PREFIX):
        return rules.MarkedPlace(path, rules.temporary) if rules.temporary(path) else None
    if not path.is_dir():
        return None
    if RunDir(path).exists():
        return RunPlace(path, note)
    return next((rules.MarkedPlace(path, rule) for rule in _RULES_OF_FOLDERS if rule(path)), None)
