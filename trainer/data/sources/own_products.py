"""Folders that this program writes itself. Beside class folders, where somebody works in them, they are no classes.

They are known by the files that each has, never by a name alone, which a class may have too.
"""

import itertools
import json
import os
import pathlib

# Of a folder with that many entries before the first run, none is looked for: it is a class.
_MAX_ENTRIES = 100
_BESIDE_DATASETS = (".cache", ".features")


def is_own_product(folder: pathlib.Path) -> bool:
    """Whether `folder` is a run, a folder of runs, a dataset, its cache or features, an export or versions of one."""
    return _is_product(folder) or _holds_runs(folder)


def _is_product(folder: pathlib.Path) -> bool:
    if _is_ours(folder / "run.json", "identity") or _is_ours(folder / "manifest.json", "splits"):
        return True
    if _is_ours(folder / "signature.json", "schema_version"):
        return True
    # A run that has just begun, a cache, features, versions: what is locked has a lock file, which says who held it.
    lock_file = folder / ".lock"
    return _is_ours(lock_file, "pid") or (folder.name.endswith(_BESIDE_DATASETS) and lock_file.is_file())


def _holds_runs(folder: pathlib.Path) -> bool:
    """Whether there are runs in `folder`, and nothing before the first of them but folders."""
    try:
        with os.scandir(folder) as entries:
            for entry in itertools.islice(entries, _MAX_ENTRIES):
                if not entry.is_dir():
                    return False
                if _is_product(pathlib.Path(entry.path)):
                    return True
    except OSError:  # whoever lists it says why
        return False
    return False


def _is_ours(path: pathlib.Path, key: str) -> bool:
    """Whether `path` is a JSON object with `key`."""
    try:
        # Another program's file of that name may be anything.
        content = json.loads(path.read_bytes()) if path.stat().st_size < 2**26 else None
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and key in content
