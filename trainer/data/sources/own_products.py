"""Recognize folders written by trainer itself, which may lie beside class folders but are not classes.

They are recognized by their files, never by name alone, which a class could have too.
"""

import itertools
import json
import os
import pathlib

from trainer.data.dataset.derived import CACHE_SUFFIX, FEATURES_SUFFIX

# Entries to search for a run; a folder with this many others first is a class.
_MAX_ENTRIES = 100
_BESIDE_DATASETS = (CACHE_SUFFIX, FEATURES_SUFFIX)


def is_own_product(folder: pathlib.Path) -> bool:
    """Return whether `folder` is a run, a folder of runs, a dataset, its cache or features, or an export."""
    return _is_product(folder) or _holds_runs(folder)


def _is_product(folder: pathlib.Path) -> bool:
    if _is_ours(folder / "run.json", "identity") or _is_ours(folder / "manifest.json", "splits"):
        return True
    if _is_ours(folder / "signature.json", "schema_version"):
        return True
    # A run that has just started, a cache, features or versions has a lock file, which says who held it.
    lock_file = folder / ".lock"
    return _is_ours(lock_file, "pid") or (folder.name.endswith(_BESIDE_DATASETS) and lock_file.is_file())


def _holds_runs(folder: pathlib.Path) -> bool:
    """Return whether `folder` contains a run, and only folders before it."""
    try:
        with os.scandir(folder) as entries:
            for entry in itertools.islice(entries, _MAX_ENTRIES):
                if not entry.is_dir():
                    return False
                if _is_product(pathlib.Path(entry.path)):
                    return True
    except OSError:  # reported when the folder is listed
        return False
    return False


def _is_ours(path: pathlib.Path, key: str) -> bool:
    """Return whether `path` is a JSON object with `key`."""
    try:
        # Another program's file of that name may be anything.
        content = json.loads(path.read_bytes()) if path.stat().st_size < 2**26 else None
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and key in content
