"""Hold every variable that a step changes."""

import dataclasses
from typing import Any

import tensorflow as tf

from trainer.config.config import Config
from trainer.errors import ModelError
from trainer.model.layers.batch_norm import changing_statistics
from trainer.step.loss_scale import LossScale
from trainer.step.optimizer import Optimizer
from trainer.system.private_api.keras_graph import all_layers, is_seed


@dataclasses.dataclass
class TrainState:
    """The model, the optimizer's slots, averages and counters; made inside the engine's scope.

    Attributes:
        trainable_variables: the model's variables that the run trains in any of its stages.
        slots: those of the optimizer, for each of `trainable_variables`.
        statistics: the model's variables that its call changes: moving means and variances that are not frozen.
        averages: moving averages of `trainable_variables`, then of the statistics; empty without `train.ema_decay`.
        is_withheld: above 0 from a step for which some worker had too little memory until it is made again.
        is_updating: above 0 while a step assigns variables, and after one that has failed in the middle of that.
    """

    model: Any
    optimizer: Optimizer
    trainable_variables: list[Any]
    slots: list[list[Any]]
    statistics: list[Any]
    averages: list[Any]
    loss_scale: LossScale
    global_step: Any
    num_skipped_steps: Any
    is_withheld: Any
    is_updating: Any

    @classmethod
    def create(cls, model: Any, config: Config, *, precision: str) -> "TrainState":
        """Create the state of a run that trains what is trainable in `model` now.

        Raises:
            ModelError: the model has random layers of its own, which would do the same on every replica.
        """
        layers = all_layers(model, include_self=False)
        if names := [layer.name for layer in layers if any(is_seed(v) for v in layer.variables)]:
            raise ModelError(
                f"the model has random layers of its own ({', '.join(names[:3])}), which cannot be keyed by example; "
                "use keras.layers.Dropout, or take them out"
            )
        optimizer = Optimizer.of_variables(config.optimizer, model.trainable_variables)
        statistics = changing_statistics(model)
        averaged = [*model.trainable_variables, *statistics] if config.train.ema_decay else []
        return cls(
            model=model,
            optimizer=optimizer,
            trainable_variables=list(model.trainable_variables),
            slots=[
                [_new_variable(tf.zeros(v.shape)) for _ in range(optimizer.num_slots)]
                for v in model.trainable_variables
            ],
            statistics=statistics,
            averages=[_new_variable(tf.zeros(v.shape)) for v in averaged],
            loss_scale=LossScale.create(is_dynamic=precision == "mixed_float16"),
            global_step=_new_variable(tf.constant(0, tf.int64)),
            num_skipped_steps=_new_variable(tf.constant(0, tf.int64)),
            is_withheld=_new_variable(tf.constant(0, tf.int64)),
            is_updating=_new_variable(tf.constant(0, tf.int64)),
        )

    @property
    def variables(self) -> list[Any]:
        """All variables of the state, as TensorFlow's."""
        scalars = [*self.loss_scale.variables, self.global_step, self.num_skipped_steps]
        return [*(v.value for v in self.model.variables), *tf.nest.flatten(self.slots), *self.averages, *scalars]

    @property
    def averaged_variables(self) -> list[Any]:
        """The model's variables that have averages, in their order."""
        return [*self.trainable_variables, *self.statistics] if self.averages else []

    def slots_of(self, variables: list[Any]) -> list[list[Any]]:
        """Return the slots of some of `trainable_variables`."""
        by_id = {id(v): slots for v, slots in zip(self.trainable_variables, self.slots, strict=True)}
        return [by_id[id(v)] for v in variables]

    def start_averages(self) -> None:
        """Set the averages to the values of the model, whose training now begins."""
        for average, variable in zip(self.averages, self.averaged_variables, strict=True):
            average.assign(variable.value)

    def averaged_values(self) -> dict[int, Any]:
        """Return the averages by the id of the model's variable."""
        return {id(v): average for v, average in zip(self.averaged_variables, self.averages, strict=True)}


def _new_variable(initial: Any) -> Any:
    return tf.Variable(initial, trainable=False)
