"""Ten kills, in each strategy: a short form of the harness that `make chaos` runs for hours."""

import pathlib
import subprocess
import sys

import pytest

from tests.chaos.results import Results

pytestmark = pytest.mark.slow

# With this seed the chief of multiworker is killed in a save, and the other worker of Horovod as it trains.
SEED = "short-1040"

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("strategies", "num_kills"),
    [("single,mirrored", 8), ("multiworker", 1), pytest.param("horovod", 1, marks=pytest.mark.horovod)],
)
def test_a_run_that_is_killed_and_resumed_ends_as_the_one_that_never_was(
    strategies: str, num_kills: int, digits: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "digits").symlink_to(digits)
    options = [f"--work={tmp_path}", f"--strategies={strategies}", f"--kills={num_kills}", "--kills-per-run=4"]
    harness = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "run", f"--seed={SEED}", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    results = Results(tmp_path / "results.jsonl")
    assert len(results.kills()) == num_kills, harness.stdout + harness.stderr
    for run in results.read("run"):
        assert (run["outcome"], run["tensorboard"], run["sha256"]) == ("equal", "equal", run["reference"])


def test_of_two_commands_at_once_one_trains_and_the_other_says_why_not(
    digits: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "digits").symlink_to(digits)
    harness = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "collisions", f"--work={tmp_path}", "--pairs=1"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    collisions = Results(tmp_path / "results.jsonl").read("collision")
    assert [line["outcome"] for line in collisions] == ["one trained"] * len(collisions), harness.stdout
    # Where namespaces are not allowed, it is one host alone.
    assert len(collisions) in (1, 3), harness.stdout + harness.stderr


def test_a_torn_line_of_the_results_is_left_out_and_the_harness_goes_on_after_the_last_run(
    tmp_path: pathlib.Path,
) -> None:
    results = Results(tmp_path / "results.jsonl")
    run = {"kind": "run", "strategy": "single", "number": 4, "kills": [{"inside_save": True}]}
    results.append(run)
    with results.path.open("a") as file:
        file.write('{"kind": "run", "stra')
    results.append({**run, "number": 5})
    assert [line["number"] for line in results.read("run")] == [4, 5]
    assert (results.next_number("single"), results.next_number("horovod")) == (6, 1)
    assert len(results.kills("single")) == 2 and not results.kills("horovod")
