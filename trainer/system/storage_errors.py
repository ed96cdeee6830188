"""Say in a sentence, with figures, why a file could not be written or read."""

import os
import pathlib
import shutil


def describe(error: OSError, path: pathlib.Path | None = None) -> str:
    """Return the path, the reason and the free space of the disk, as in "RUN/plan.json (No space left; 0 MiB free)".

    `path` is where it happened; None: the file that `error` names, if any.
    """
    reason = error.strerror or str(error)
    named = error.filename if isinstance(error.filename, str) else None
    path = path if path is not None else pathlib.Path(named) if named else None
    if path is None:
        return reason
    there = path if path.exists() else path.parent
    try:
        free_bytes = shutil.disk_usage(there).free
    except OSError:
        return f"{path} ({reason}; the directory is gone)"
    writable = "" if os.access(there, os.W_OK) else ", not writable"
    return f"{path} ({reason}; {free_bytes / 2**20:,.0f} MiB free{writable})"
