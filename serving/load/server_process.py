"""Start a server in a process of its own, to measure it."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def server_process(command: list[str]) -> Iterator[tuple[dict[str, Any], "subprocess.Popen[str]"]]:
    """Start a server that prints JSON once it serves, such as `trainer serve --json`, and end it after the block.

    Yields:
        what it printed, and its process.

    Raises:
        RuntimeError: it ended before it served.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")  # noqa: S603
    try:
        yield _read_json(process), process
    finally:
        process.terminate()
        process.wait()


def _read_json(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        # It may be printed over several lines.
        with contextlib.suppress(ValueError):
            told: dict[str, Any] = json.loads(text)
            return told
    raise RuntimeError(f"{process.args!r} ended before it served")
