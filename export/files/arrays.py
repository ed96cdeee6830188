"""Files of named arrays: a zip of .npy files without pickled objects; deterministic."""

import io
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# What `read_arrays` raises for a file that is damaged.
DAMAGED = (ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError)


def write_arrays(path: pathlib.Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(array, order="C"), allow_pickle=False)
            # ZipInfo has a constant time, which keeps the file reproducible.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), zipfile.ZIP_DEFLATED)


def read_arrays(path: pathlib.Path) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays by name. Raises FileNotFoundError, or one of DAMAGED."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def join_files(files: Sequence[bytes]) -> dict[str, npt.NDArray[Any]]:
    """Return files as two arrays, to store them with others."""
    return {
        "encoded": np.frombuffer(b"".join(files), np.uint8),
        "encoded_lengths": np.array([len(file) for file in files], np.int64),
    }


def split_files(arrays: Mapping[str, npt.NDArray[Any]]) -> list[bytes]:
    """Return the files that `join_files` joined."""
    ends = np.cumsum(arrays["encoded_lengths"])
    return [part.tobytes() for part in np.split(arrays["encoded"], ends[:-1])]
