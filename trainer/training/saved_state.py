"""Save the training state as a checkpoint, and restore it."""

from trainer.model.classifier import assign_arrays, named_arrays, saved_variables
from trainer.run.checkpoint import Arrays, Checkpoint, CheckpointInfo, CheckpointStore
from trainer.step.state import TrainState
from trainer.training.context import RunContext


def save_checkpoint(context: RunContext, step: int, validation: dict[str, float] | None = None) -> None:
    """Write the checkpoint of `step` with its validation metrics; one that exists is left as it is.

    A worker without a store, that is, any but the chief, writes nothing.
    """
    if context.store is None or step in context.store.steps():
        return
    state = context.state
    info = CheckpointInfo(
        global_step=step,
        identity=context.plan.identity(context.config),
        num_replicas=context.plan.replicas.num_replicas,
        loss_scale=float(state.loss_scale.scale.numpy()),
        num_good_steps=int(state.loss_scale.num_good_steps.numpy()),
        num_skipped_steps=int(state.num_skipped_steps.numpy()),
        validation=validation or {},
    )
    model = named_arrays(saved_variables(state.model))
    context.store.save(Checkpoint(info, model, _slot_arrays(state), _average_arrays(state, model)))


def restore_checkpoint(state: TrainState, store: CheckpointStore, step: int) -> None:
    """Set every variable of `state` from the checkpoint of `step`.

    Raises:
        RunError: the checkpoint is damaged.
    """
    store.clear_temporaries()
    info, model, slots, averages = store.load(step)
    assign_arrays(saved_variables(state.model), model, origin=f"the checkpoint of step {step}")
    _assign_slots(state, slots)
    if state.averages:
        _assign_averages(state, averages)
    state.loss_scale.scale.assign(info.loss_scale)
    state.loss_scale.num_good_steps.assign(info.num_good_steps)
    state.global_step.assign(step)
    state.num_skipped_steps.assign(info.num_skipped_steps)


def _slot_arrays(state: TrainState) -> Arrays:
    """Return the optimizer's slots by name: position of the parameter, slot, path."""
    return {
        f"{i:05d}.{j}:{variable.path}": slot.numpy()
        for i, (variable, slots) in enumerate(zip(state.learnt, state.slots, strict=True))
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
