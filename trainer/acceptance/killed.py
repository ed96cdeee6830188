"""A run that is killed and resumed ends with the weights of the run that never was."""

import os
import shutil
import signal
import subprocess
import time
from typing import Final

from trainer.acceptance import trained
from trainer.acceptance.engines import EXACT, SINGLE, exact_command, run_exactly
from trainer.acceptance.result import Result, failed, passed
from trainer.acceptance.work import CommandError, Work, last_lines, log_file
from trainer.run.checkpoint_store import CheckpointStore

RESUME: Final = "resume"
EXPECTED: Final = (
    "after SIGKILL and the same command again, the SHA-256 of the weights and all losses of the run before"
)
# Step directories of the finished checkpoints after which it is killed, and how often the run may be quicker.
_NUM_CHECKPOINTS = 2
_NUM_ATTEMPTS = 5
_LOOK_EVERY_SECS = 0.001


def check_resume(work: Work) -> list[Result]:
    """Kill a run like `single` once it has saved, go on with it, and compare the end."""
    killed_at = _kill_after_a_save(work)
    run_dir = work.run_dir(RESUME)
    settings = {"distribute.strategy": SINGLE, **work.device_settings}
    run_exactly(work, RESUME, settings)
    found, expected = trained.hash_of_weights(run_dir), trained.hash_of_weights(work.run_dir(SINGLE))
    losses, expected_losses = trained.read_losses(run_dir), trained.read_losses(work.run_dir(SINGLE))
    num_equal = sum(one == other for one, other in zip(losses, expected_losses, strict=False))
    seen = (
        f"killed with step {killed_at} saved; {num_equal} of {len(expected_losses)} losses equal, SHA-256 {found[:12]} "
        f"and {expected[:12]}"
    )
    figures = {"killed_after_step": killed_at, "sha256": found, "expected_sha256": expected}
    if found == expected and losses == expected_losses:
        return [passed(RESUME, EXPECTED, seen, **figures)]
    return [failed(RESUME, EXPECTED, seen, f"compare {run_dir} with {work.run_dir(SINGLE)}", **figures)]


def _kill_after_a_save(work: Work) -> int:
    """Kill a run in the middle of its training and return the step of its last checkpoint.

    Raises:
        CommandError: it ended by itself, several times.
    """
    command = exact_command(work, RESUME, {"distribute.strategy": SINGLE, **work.device_settings})
    log, run_dir = log_file(work, f"{RESUME}-killed"), work.run_dir(RESUME)
    checkpoints = CheckpointStore(run_dir / "checkpoints", keep=1, best_metric="accuracy")
    for _ in range(_NUM_ATTEMPTS):
        shutil.rmtree(run_dir, ignore_errors=True)
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603  this very program
                command,
                cwd=work.directory,
                env={**os.environ, **EXACT},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        while process.poll() is None and len(checkpoints.steps()) < _NUM_CHECKPOINTS:
            time.sleep(_LOOK_EVERY_SECS)
        process.kill()
        status = process.wait()
        if status == -signal.SIGKILL and (steps := checkpoints.steps()) and steps[-1] < work.size.equal_steps:
            return steps[-1]
        if status > 0:
            raise CommandError(f"trainer launch ended with status {status}: {last_lines(log)}")
    raise CommandError(f"the run ended {_NUM_ATTEMPTS} times before it could be killed: {last_lines(log)}")
