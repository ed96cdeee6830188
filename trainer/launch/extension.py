"""A run that is taken further: it was planned for a number of epochs, and another number is asked for."""

import dataclasses
import pathlib
import shlex

from trainer.config.config import Config
from trainer.data.sampling.epochs import Epochs
from trainer.errors import RunError, TrainerError
from trainer.plan.common_steps import CommonSteps, count_common_steps
from trainer.plan.plan import Plan
from trainer.run.checkpoint_store import CheckpointStore
from trainer.run.run_dir import RunDir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extension:
    """How a run of `epochs_before` epochs goes on to another number of them.

    Attributes:
        first_step: the step that it goes on from: that of the newest checkpoint up to which both plans are the same.
        last_step: the step of the newest checkpoint that there is.
    """

    epochs_before: float
    first_step: int
    last_step: int

    def describe(self, run: RunDir, config: Config) -> str:
        """Describe it in a sentence, for the log."""
        told = f"{run.path}: train.epochs is {config.train.epochs:g} now, and was {self.epochs_before:g}"
        if self.first_step < self.last_step:
            told += (
                f"; it goes on from the checkpoint of step {self.first_step}, since the last step of the shorter run "
                f"({self.last_step}) is another one in the longer"
            )
        return told


def find_extension(run: RunDir, config: Config, plan: Plan) -> Extension | None:
    """Return how the run in the directory of `run` goes on to the epochs of `config`.

    Returns None where there is no run, or where it differs in anything but the number of epochs, or not at all.

    Raises:
        RunError: it has made more steps, or its steps would have been others in a run of so many epochs; the message
            has the command that trains its weights further in a new run.
    """
    before = _with_epochs_of(run, config, plan)
    if before is None:
        return None
    steps = CheckpointStore.of_run(run, config.checkpoint).steps()
    made = max(steps, default=0)
    if made > plan.schedule.num_train_steps:
        raise RunError(
            f"{run.path} has made {made} steps, and train.epochs={config.train.epochs:g} ends with step "
            f"{plan.schedule.num_train_steps}; training is not taken back, so give at least --set "
            f"train.epochs={before.train.epochs:g}, or --run-dir a new directory"
        )
    common = count_common_steps(before, config, plan)
    usable = [step for step in steps if step <= common.number]
    if not made or (usable and common.number >= made - 1):
        return Extension(epochs_before=before.train.epochs, first_step=max(usable, default=0), last_step=made)
    raise RunError(_refuse(run, before, config, plan, made, common))


def _with_epochs_of(run: RunDir, config: Config, plan: Plan) -> Config | None:
    """Return `config` with the epochs of `run`, if that is the configuration of `run`."""
    if not run.exists() or run.identity() == plan.identity(config):
        return None
    try:
        epochs = run.config().train.epochs
    except TrainerError:
        return None
    before = config.model_copy(update={"train": config.train.model_copy(update={"epochs": epochs})})
    return before if run.identity() == plan.identity(before) else None


def _refuse(run: RunDir, before: Config, config: Config, plan: Plan, made: int, common: CommonSteps) -> str:
    done = made * plan.epochs.batch_size / plan.epochs.num_examples
    if done >= before.train.epochs or made == _count_steps(before, plan):
        done = before.train.epochs
    head = (
        f"{run.path} was trained for {done:g} epochs of train.epochs={before.train.epochs:g}, which are not the first "
        f"ones of train.epochs={config.train.epochs:g}: {common.difference}"
    )
    left = round(config.train.epochs - done, 6)
    if left <= 0:
        return f"{head}; give --run-dir a new directory"
    return f"{head}; to train its weights for {left:g} epochs more, start a new run from them: " + further_command(
        run, config, plan, left
    )


def _count_steps(config: Config, plan: Plan) -> int:
    """Return the number of steps of a run with the epochs of `config` on the data of `plan`."""
    return Epochs.of(config, plan.data.num_train_examples).num_train_steps


def further_command(run: RunDir, config: Config, plan: Plan, epochs: float) -> str:
    """Return the command that trains the weights of `run` for `epochs` more, in a new run with the same settings."""
    changes = [f"model.weights={run.path.resolve()}", f"train.epochs={epochs:g}"]
    if config.train.unfreeze:
        # The new run begins with all that the end of this one trained.
        changes += ["train.unfreeze=[]", f"model.trainable={plan.schedule.stages[-1].trainable}"]
    if config.augment.progressive_sizes_px:
        changes.append("augment.progressive_sizes_px=null")
    if any(epoch >= epochs for epoch in config.optimizer.step_epochs):
        changes += ["optimizer.schedule=cosine", "optimizer.step_epochs=[]"]
    if config.optimizer.warmup_epochs > epochs:
        changes.append("optimizer.warmup_epochs=0")
    given = [f"--config={run.config_file.resolve()}", f"--data={plan.data.dataset_dir}"]
    given += [word for change in changes for word in ("--set", change)]
    return shlex.join(["trainer", "launch", *given, f"--run-dir={_new_name(run.path, epochs)}"])


def _new_name(path: pathlib.Path, epochs: float) -> pathlib.Path:
    name, number = f"{path.name}-{epochs:g}-more", 1
    while (new := path.with_name(name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return new
