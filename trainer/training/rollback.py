"""`train.on_non_finite=rollback`: go back to a checkpoint where gradients stop being finite, and leave batches out.

The rule: the run takes the weights and the optimizer of the newest checkpoint before the first of the skipped steps
that no rollback has used, and goes on with the step after the last one that it made. The batches in between are left
out. That state is saved at once as the checkpoint of the last step, so a resumed run and all its workers go on from
the same place. `RUN/rollbacks.json` lists the rollbacks; the run ends after `train.max_rollbacks` of them.
"""

from typing import Final, Literal

import pydantic

from trainer.errors import NonFiniteGradientError, RunError
from trainer.run.checkpoint import DamagedError
from trainer.run.checkpoint_saver import CheckpointSaver
from trainer.run.run_dir import RunDir
from trainer.system import atomic
from trainer.system.safe_read import read_small
from trainer.training.context import RunContext
from trainer.training.saved_state import restore_checkpoint, save_checkpoint

SCHEMA_VERSION: Final = 1


class Rollback(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Training went on after `last_step` with the state of `checkpoint_step`; the batches in between are left out."""

    checkpoint_step: int
    last_step: int


class Rollbacks(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The contents of `rollbacks.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    rollbacks: list[Rollback] = []


def read_rollbacks(run: RunDir) -> list[Rollback]:
    """Return the rollbacks of `run`, in order.

    Raises:
        RunError: the file that lists them is damaged.
    """
    try:
        return Rollbacks.model_validate_json(read_small(run.rollbacks_file)).rollbacks
    except FileNotFoundError:
        return []
    except pydantic.ValidationError as e:
        told = f"{run.rollbacks_file} is not a list of rollbacks ({e.errors()[0]['msg']})"
        raise RunError(f"{told}; copy it from a backup, or give --run-dir a new directory") from None


def forget_later(context: RunContext) -> None:
    """Take rollbacks after the step of the state off the list, for a run that goes on from there; for the chief."""
    found = read_rollbacks(context.run) if context.is_chief else []
    kept = [each for each in found if each.last_step <= context.step]
    if kept != found:
        _write_rollbacks(context.run, kept)


def roll_back(context: RunContext, error: NonFiniteGradientError) -> str:
    """Set the state of all workers as the rule of this module says; return a sentence on it, for the log.

    All workers call this together.

    Raises:
        NonFiniteGradientError: there were `train.max_rollbacks` before, or no checkpoint is left to go back to.
        StorageError: the checkpoint could not be written.
    """
    step, limit = context.step, context.config.train.max_rollbacks
    before = read_rollbacks(context.run) if context.is_chief else []
    source = _restore(context, context.saver, error, before) if context.saver is not None and len(before) < limit else 0
    if not context.engine.any(source > 0):
        why = f"after train.max_rollbacks={limit} rollbacks" if len(before) >= limit else "no checkpoint to go back to"
        raise NonFiniteGradientError(f"{error} ({why})", step=error.step, first_step=error.first_step)
    # The chief's state, as at a start from a checkpoint.
    context.engine.broadcast(context.state.variables)
    if context.saver is not None:
        # Before the checkpoint: without it, a run that is resumed takes this off again.
        _write_rollbacks(context.run, [*before, Rollback(checkpoint_step=source, last_step=step)])
        save_checkpoint(context, step, is_last=True)
        # Of weights that the run has left.
        context.saver.store.clear_after(source, before=step)
    context.engine.barrier()
    return (
        f"{error}: back to the weights of the checkpoint of step {source}, and on with step {step + 1}; the batches of "
        f"steps {source + 1} to {step} are left out (rollback {len(before) + 1} of at most {limit})"
    )


def _restore(context: RunContext, saver: CheckpointSaver, error: NonFiniteGradientError, before: list[Rollback]) -> int:
    """Restore the state to go on with; return the step of its checkpoint, or 0 if none is left."""
    saver.wait()
    step, used = context.step, {number for each in before for number in (each.checkpoint_step, each.last_step)}
    sources = [number for number in saver.store.steps() if number < error.first_step and number not in used]
    for source in reversed(sources):
        try:
            checkpoint = saver.store.load(source)
        except DamagedError:
            continue
        restore_checkpoint(context.state, checkpoint)
        context.state.global_step.assign(step)
        # They count as skipped, so that the optimizer counts its updates right.
        context.state.num_skipped_steps.assign(checkpoint.info.num_skipped_steps + step - source)
        return source
    return 0


def _write_rollbacks(run: RunDir, rollbacks: list[Rollback]) -> None:
    atomic.write_text(run.rollbacks_file, Rollbacks(rollbacks=rollbacks).model_dump_json(indent=2) + "\n")
