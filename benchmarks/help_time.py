"""Compare the time of `trainer --help` with an empty Typer application with rich.

    python benchmarks/help_time.py

The two take turns, so that other load on the machine affects both; after one round to warm the caches, the medians of
ten rounds are compared. Exit status 1 if ours takes more than 1.5 times as long.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

NUM_ROUNDS = 10
MAX_RATIO = 1.5
EMPTY_APPLICATION = """
import typer

app = typer.Typer(rich_markup_mode="rich")


@app.command()
def nothing() -> None:
    \"\"\"Does nothing.\"\"\"


app()
"""


def time_once(command: list[str]) -> float:
    """Return the wall seconds of one run."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "120"})
    return time.perf_counter() - started


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        empty = pathlib.Path(folder, "empty.py")
        empty.write_text(EMPTY_APPLICATION, encoding="utf-8")
        commands = {
            "trainer": [str(pathlib.Path(sys.executable).with_name("trainer")), "--help"],
            "an empty application": [sys.executable, str(empty), "--help"],
        }
        rounds = [[time_once(command) for command in commands.values()] for _ in range(1 + NUM_ROUNDS)][1:]
    ours, theirs = (statistics.median(times) for times in zip(*rounds, strict=True))
    for name, seconds in zip(commands, (ours, theirs), strict=True):
        print(f"{name:22s} {seconds:.3f} s (median of {NUM_ROUNDS})")
    print(f"{'ratio':22s} {ours / theirs:.2f} (at most {MAX_RATIO})")
    return 0 if ours <= MAX_RATIO * theirs else 1


if __name__ == "__main__":
    sys.exit(main())
