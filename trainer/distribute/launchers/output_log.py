"""Keep the output of a worker in a file, and go on without where the file cannot be written."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import IO

from trainer.system import storage_errors


class OutputLog:
    """A file that lines are appended to; as a context manager it closes the file.

    On a full disk, lines are left out and counted; the worker is read all the same, and does not wait.
    """

    def __init__(self, path: pathlib.Path | None, show: Callable[[str], None]) -> None:
        """Append to `path`, or keep nothing if it is None; `show` is called with a sentence when lines are left out."""
        self._path, self._show = path, show
        self._file: IO[bytes] | None = None
        self._num_left_out = 0

    def write(self, line: bytes) -> None:
        """Append one line, which ends with a line break."""
        if self._path is None:
            return
        try:
            file = self._open(self._path)
            if self._num_left_out:
                file.write(f"({self._num_left_out} lines could not be written here)\n".encode())
                self._num_left_out = 0
            file.write(line)
        except OSError as e:
            self._num_left_out += 1
            if self._num_left_out == 1:
                self._show(
                    f"warning: the output of a worker could not be kept in {storage_errors.describe(e, self._path)}; "
                    "lines are left out there until it can"
                )

    def _open(self, path: pathlib.Path) -> IO[bytes]:
        if self._file is None:
            self._file = path.open("ab", buffering=0)
        return self._file

    def __enter__(self) -> "OutputLog":
        # Also of a worker that prints nothing there is a file. If it cannot be made, the first line tells.
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._open(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
