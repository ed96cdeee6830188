"""The training step of a run in stages: each trains other variables, and has a step of its own."""

from typing import Any

from trainer.config.config import Config
from trainer.data.input.batch import Batch
from trainer.distribute.engine import Engine
from trainer.errors import ModelError
from trainer.model.classifier import backbone_of, find_backbone_in
from trainer.model.freezing import set_trainable
from trainer.model.layers.batch_norm import momenta_of_statistics
from trainer.plan.plan import Plan
from trainer.plan.stages import Stage
from trainer.step.losses import Objective
from trainer.step.state import TrainState
from trainer.step.train_step import StepMetrics, TrainStep


class StagedStep:
    """A training step to be called on the per-replica batches of all steps from `first_step` on, in order.

    `several` makes many steps of one stage in one call.
    """

    def __init__(self, plan: Plan, engine: Engine, state: TrainState, config: Config, *, first_step: int) -> None:
        """Raise ModelError if a stage trains a variable that a later one does not."""
        self._plan, self._engine, self._state, self._config = plan, engine, state, config
        self._objective = make_objective(plan, config)
        self._next_step = first_step
        self._new_statistics = _find_new_statistics(plan, state)
        self._unfrozen_at = _find_unfreezing(plan, state)
        self._step: TrainStep | None = None
        self._trainable: str | None = None

    def __call__(self, batch: Batch) -> StepMetrics:
        metrics = self._step_of_stage()(batch)
        self._next_step += 1
        return metrics

    def run_steps(self, batches: Any, num_steps: int) -> StepMetrics:
        """Make at most `num_steps` steps on the next of `batches`, all in this stage; fewer if the stage ends."""
        num_steps = min(num_steps, self.stage.stop_step - self._next_step)
        metrics = self._step_of_stage().run_steps(batches, num_steps)
        self._next_step += num_steps
        return metrics

    @property
    def stage(self) -> Stage:
        """The stage of the next step."""
        return next(stage for stage in self._plan.schedule.stages if self._next_step < stage.stop_step)

    def _step_of_stage(self) -> TrainStep:
        if self._step is None or self.stage.trainable != self._trainable:
            self._step = self._make_step(self.stage)
        return self._step

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
