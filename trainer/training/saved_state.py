"""Save the training state as a checkpoint, and restore it."""

from trainer.model.classifier import assign_arrays, named_arrays, saved_variables
from trainer.run.checkpoint import Arrays, Checkpoint, CheckpointInfo
from trainer.step.state import TrainState
from trainer.training.context import RunContext


def save_checkpoint(
    context: RunContext, step: int, validation: dict[str, float] | None = None, *, is_last: bool = False
) -> None:
    """Copy the state after `step` and begin to write it, with its validation metrics; one that exists is left alone.

    A worker that is not the chief writes nothing. With `is_last`, nothing will be saved after it, and the function
    returns when it is on the disk.

    Raises:
        StorageError: the last checkpoint, or several one after the other, could not be written.
    """
    if context.saver is None:
        return
    if context.saver.newest_step == step:
        context.saver.wait(is_last=is_last)
        return
    state = context.state
    info = CheckpointInfo(
        global_step=step,
        identity=context.plan.identity(context.config),
        num_replicas=context.plan.replicas.num_replicas,
        seeds={"train.seed": context.config.train.seed},
        loss_scale=float(state.loss_scale.scale.numpy()),
        num_good_steps=int(state.loss_scale.num_good_steps.numpy()),
        num_skipped_steps=int(state.num_skipped_steps.numpy()),
        validation=validation or {},
    )
    model = named_arrays(saved_variables(state.model))
    checkpoint = Checkpoint(info, model, _slot_arrays(state), _average_arrays(state, model))
    context.saver.save(checkpoint, is_last=is_last)


def restore_checkpoint(state: TrainState, checkpoint: Checkpoint) -> None:
    """Set every variable of `state` from `checkpoint`."""
    info, model, slots, averages = checkpoint
    assign_arrays(saved_variables(state.model), model, origin=f"the checkpoint of step {info.global_step}")
    _assign_slots(state, slots)
    if state.averages:
        _assign_averages(state, averages)
    state.loss_scale.scale.assign(info.loss_scale)
    state.loss_scale.num_good_steps.assign(info.num_good_steps)
    state.global_step.assign(info.global_step)
    state.num_skipped_steps.assign(info.num_skipped_steps)


def _slot_arrays(state: TrainState) -> Arrays:
    """Return the optimizer's slots by name: position of the parameter, slot, path."""
    return {
        f"{i:05d}.{j}:{variable.path}": slot.numpy()
        for i, (variable, slots) in enumerate(zip(state.trainable_variables, state.slots, strict=True))
        for j, slot in enumerate(slots)
    }


def _assign_slots(state: TrainState, arrays: Arrays) -> None:
    by_position = {name.partition(":")[0]: array for name, array in arrays.items()}
    for i, slots in enumerate(state.slots):
        for j, slot in enumerate(slots):
            slot.assign(by_position[f"{i:05d}.{j}"])


def _average_arrays(state: TrainState, model: Arrays) -> Arrays:
    """Return `model`, the arrays of the model's variables, with each that has a moving average replaced by it."""
    if not state.averages:
        return {}
    averaged = state.averaged_values()
    return {
        name: averaged[id(variable)].numpy() if id(variable) in averaged else model[name]
        for name, variable in zip(model, saved_variables(state.model), strict=True)
    }


def _assign_averages(state: TrainState, arrays: Arrays) -> None:
    averaged = state.averaged_values()
    for name, variable in zip(sorted(arrays), saved_variables(state.model), strict=True):
        if id(variable) in averaged:
            averaged[id(variable)].assign(arrays[name])
