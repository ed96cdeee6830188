"""Read and write text as UTF-8, whatever the locale says: recipes, tables, names of files."""

import os
import sys


def ensure_utf8() -> None:
    """Start this program again in Python's UTF-8 mode (PEP 540) where the locale makes file names something else.

    Python does so by itself for the locales C and POSIX, unless the environment forbids it; never for others.
    """
    if sys.getfilesystemencoding().replace("-", "").lower() != "utf8":
        os.environ["PYTHONUTF8"] = "1"  # also for the processes that this one starts
        os.environ.pop("PYTHONIOENCODING", None)
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 -- itself
    for stream in (sys.stdout, sys.stderr):
        # PYTHONIOENCODING may say what has no character for everything.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
