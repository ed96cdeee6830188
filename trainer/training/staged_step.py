"""The training step of a run in stages: each trains other variables, and has a step of its own."""

from typing import Any

from trainer.config.config import Config
from trainer.distribute.engine import Engine
from trainer.errors import ModelError
from trainer.model.classifier import backbone_of, find_backbone_in
from trainer.model.freezing import set_trainable
from trainer.model.layers.batch_norm import momenta_of_statistics
from trainer.plan.plan import Plan
from trainer.plan.stages import Stage
from trainer.step.losses import Objective
from trainer.step.state import TrainState
from trainer.step.train_step import TrainStep


class StagedStep:
    """The training steps of the stages of a run; each is made when it is first asked for."""

    def __init__(
        self, plan: Plan, engine: Engine, state: TrainState, config: Config, *, num_parts: int | None = None
    ) -> None:
        """Raise ModelError if a stage trains a variable that a later one does not."""
        self._plan, self._engine, self._state, self._config = plan, engine, state, config
        self._objective = make_objective(plan, config)
        self._num_parts = num_parts
        self._new_statistics = _find_new_statistics(plan, state)
        self._unfrozen_at = _find_unfreezing(plan, state)
        self._step: TrainStep | None = None
        self._trainable: str | None = None

    def stage_of(self, step: int) -> Stage:
        """Return the stage that is trained when `step` steps have been made."""
        return next(stage for stage in self._plan.schedule.stages if step < stage.stop_step)

    def at(self, step: int) -> TrainStep:
        """Return the training step to make when `step` steps have been made."""
        stage = self.stage_of(step)
        if self._step is None or stage.trainable != self._trainable:
            self._step = self._make_step(stage)
        return self._step

    def use_parts(self, num_parts: int) -> None:
        """Compute each batch in `num_parts` parts from now on, in every stage."""
        self._num_parts = num_parts
        if self._step is not None:
            self._step.use_parts(num_parts)

    def _make_step(self, stage: Stage) -> TrainStep:
        self._trainable = stage.trainable
        _train(self._state.model, stage, self._plan)
        return TrainStep(
            self._engine,
            self._state,
            self._config,
            num_train_steps=self._plan.schedule.num_train_steps,
            epochs=self._plan.epochs,
            jit_compile=self._plan.replicas.jit_compile,
            objective=self._objective,
            unfrozen_at=self._unfrozen_at,
            new_statistics=self._new_statistics,
            num_parts=self._num_parts,
        )


def make_objective(plan: Plan, config: Config) -> Objective:
    """Return the loss and the correctness measure of the run."""
    return Objective.of(
        config, task=plan.model.task, num_classes=len(plan.data.class_names), class_weights=plan.model.class_weights
    )


def _find_unfreezing(plan: Plan, state: TrainState) -> dict[int, int]:
    """Return the step from which each variable is trained, by the id of the variable."""
    learned = {id(v) for v in state.trainable_variables}
    found: dict[int, int] = {}
    for stage in plan.schedule.stages:
        _train(state.model, stage, plan)
        trained = {id(v): v.path for v in state.model.trainable_variables}
        if missing := [path for key, path in trained.items() if key not in learned]:
            raise ModelError(
                f"train.unfreeze trains {missing[0]} up to step {stage.stop_step} and not at the end; each part must "
                "train all that the one before it does"
            )
        for key in trained:
            found.setdefault(key, stage.start_step)
    return found


def _find_new_statistics(plan: Plan, state: TrainState) -> dict[int, float]:
    """Return the momentum of each batch statistic that changes from the first step on and is not pretrained."""
    _train(state.model, plan.schedule.stages[0], plan)
    momenta = momenta_of_statistics(state.model)
    network = find_backbone_in(state.model)
    if plan.model.weights == "none" or network is None:
        return momenta
    of_backbone = momenta_of_statistics(network)
    return {key: momentum for key, momentum in momenta.items() if key not in of_backbone}


def _train(model: Any, stage: Stage, plan: Plan) -> None:
    if len({each.trainable for each in plan.schedule.stages}) > 1:
        set_trainable(backbone_of(model), stage.trainable, keeps_statistics=plan.model.batch_norm == "frozen")
