"""A run that is stopped, and goes on: real processes, real signals. Those that are killed are in `tests/chaos/`."""

import pathlib
import signal
import time

import pytest
from launching import check_that_a_second_command_is_refused, final_weights_hash, launch, metrics

pytestmark = pytest.mark.slow

# All that a step may keep: averages, and batches in parts.
EVERY_SEVEN = ("--set=checkpoint.every_steps=7", "--set=train.ema_decay=0.9", "--set=train.accumulate_steps=2")


@pytest.fixture(scope="module")
def uninterrupted(digits: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    run_dir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    process = launch(digits, run_dir, *EVERY_SEVEN)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return run_dir


def wait_for_checkpoint(run_dir: pathlib.Path, number: int = 1, timeout_secs: float = 600) -> None:
    deadline = time.monotonic() + timeout_secs
    while len(list((run_dir / "checkpoints").glob("step-*"))) < number:
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)


def test_sigterm_saves_and_exits_with_75_and_the_same_command_goes_on_also_from_the_checkpoint_before(
    digits: pathlib.Path, uninterrupted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run_dir = tmp_path / "run"
    process = launch(digits, run_dir, *EVERY_SEVEN)
    wait_for_checkpoint(run_dir, 2)
    check_that_a_second_command_is_refused(digits, run_dir, process.pid)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 75, output
    assert "the same command goes on" in output and "Traceback" not in output

    newest = max((run_dir / "checkpoints").glob("step-*"))
    content = bytearray((newest / "optimizer.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "optimizer.safetensors").write_bytes(content)
    process = launch(digits, run_dir, *EVERY_SEVEN)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "going on with" in output
    assert f"{newest / 'optimizer.safetensors'} is damaged" in output and "trying the one of step" in output
    assert final_weights_hash(run_dir) == final_weights_hash(uninterrupted)


def test_only_the_newest_checkpoints_and_the_best_are_kept(uninterrupted: pathlib.Path) -> None:
    steps = sorted(path.name for path in (uninterrupted / "checkpoints").iterdir())
    best = max((m for m in metrics(uninterrupted) if m["split"] == "validation"), key=lambda m: m["accuracy"])
    assert len(steps) <= 3
    assert f"step-{int(best['step']):08d}" in steps
    assert not [name for name in steps if name.startswith(".tmp-")]
