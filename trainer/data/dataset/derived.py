"""Describe the caches of a dataset: decoded images and features, which can be computed again at any time.

    <DATASET>.cache/<split>-<size>px-<key>/   header.json   pixels.uint8
    <DATASET>.features/<split>-<key>/         header.json   features.float32

Readers share the header (`system/in_use.py`) for as long as the array is mapped. Its modification time is the time of
the last use.
"""

import contextlib
import os
import pathlib
from typing import Final

CACHE_SUFFIX: Final = ".cache"
FEATURES_SUFFIX: Final = ".features"
HEADER: Final = "header.json"
PIXELS: Final = "pixels.uint8"
FEATURES: Final = "features.float32"


def note_use(folder: pathlib.Path) -> None:
    """Record that the array in `folder` is used now; does nothing where the folder cannot be written."""
    with contextlib.suppress(OSError):
        os.utime(folder / HEADER)
