"""One training run, from a plan to its last checkpoint."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from trainer.config.config import Config
from trainer.config.data import AugmentConfig
from trainer.console.progress import TrainingProgress
from trainer.data.input.pipeline import EvaluationStream, TrainingStream
from trainer.distribute.engine import Engine
from trainer.errors import NonFiniteGradientError
from trainer.evaluation.evaluator import Evaluator
from trainer.plan.plan import Plan
from trainer.run.checkpoint import CheckpointStore
from trainer.run.metric_writers import MetricsLog, MetricsSplit, MetricWriter, MetricWriters, TensorBoardWriter
from trainer.run.run_dir import RunDir
from trainer.step.state import TrainState
from trainer.training.actions import EvaluateAndSave, LogMetrics
from trainer.training.bad_batch import save_bad_batch
from trainer.training.batches import make_steps, stream_of_stage
from trainer.training.early_stopping import has_lost_patience
from trainer.training.input import Caches, make_training_stream, make_validation_stream
from trainer.training.loop import StopRequest, run_loop
from trainer.training.staged_step import StagedStep


def train(
    plan: Plan,
    config: Config,
    run: RunDir,
    engine: Engine,
    state: TrainState,
    store: CheckpointStore | None,
    caches: Caches,
    progress: TrainingProgress,
    more_writers: Sequence[MetricWriter] = (),
) -> None:
    """Trains from the step of `state` to the end of `plan`. Workers other than the chief have no `store`.

    `more_writers` take the metrics on every worker, and not the chief alone.

    Raises:
        StoppedOnRequest: a signal asked for it; everything is saved.
        TrainingError: training cannot go on.
    """
    first_step, identity = int(state.global_step.numpy()), plan.identity(config)
    training = make_training_stream(plan, config, engine.topology, caches)
    validation = make_validation_stream(plan, config, engine.topology, caches)
    trained = on_features(state, caches)
    if caches.tail is not None:
        # What is cached has had its random changes.
        config = config.model_copy(update={"augment": AugmentConfig()})
    with open_writers(run, first_step, more_writers) if store else MetricWriters(more_writers) as writers:
        logging = LogMetrics(
            writers,
            progress,
            plan,
            first_step=first_step,
            every_steps=config.log.every_steps,
            max_skipped_steps=config.train.max_skipped_steps,
        )
        saving = EvaluateAndSave(
            plan=plan,
            identity=identity,
            state=state,
            store=store,
            evaluators=make_evaluators(plan, engine, trained, validation),
            writers=writers,
            progress=progress,
            leave_out=logging.leave_out,
            is_enough=lambda step: has_ended_early(config, run, engine, is_chief=store is not None, step=step),
        )
        step = StagedStep(plan, engine, trained, config, first_step=first_step)

        def save_and_wait(step: int) -> None:
            saving.save(step)
            # A launcher ends the whole job when the first worker exits: not before the chief has saved.
            engine.barrier()

        with (
            StopRequest().listen() as stop_request,
            _keeping_bad_batch(run, plan, training, is_chief=store is not None),
        ):
            run_loop(
                make_steps=make_steps(plan, engine, training, step, first_step),
                first_step=first_step,
                last_step=plan.num_train_steps,
                on_metrics=logging.collect,
                actions=[logging, saving],
                save=save_and_wait,
                should_stop=lambda: engine.any(stop_request.is_set),
                is_over=lambda: saving.is_over,
            )
    # Nobody leaves while another still needs its answers.
    engine.barrier()


@contextlib.contextmanager
def _keeping_bad_batch(run: RunDir, plan: Plan, stream: TrainingStream, *, is_chief: bool) -> Iterator[None]:
    """Where the block ends for gradients that are not finite, the chief saves the last batch that had one."""
    try:
        yield
    except NonFiniteGradientError as e:
        if not is_chief:
            raise
        stage = next(stage for stage in plan.stages if e.step <= stage.stop_step)
        save_bad_batch(run.bad_batch_file, stream_of_stage(stream, stage), step=e.step)
        raise NonFiniteGradientError(f"{e}; the batch of step {e.step} is in {run.bad_batch_file}", step=e.step) from e


def has_ended_early(config: Config, run: RunDir, engine: Engine, *, is_chief: bool, step: int) -> bool:
    """Whether the evaluations up to `step` have brought no new best for long enough, as `train.patience` says.

    The chief alone looks, at the log of the run; all workers ask together, and get the same answer.
    """
    patience = config.train.patience
    if patience is None:
        return False
    metric = config.checkpoint.best_metric
    return engine.any(is_chief and has_lost_patience(run.metrics_file, metric, patience=patience, step=step))


def on_features(state: TrainState, caches: Caches) -> TrainState:
    """The same state, whose model takes what is cached where that are features."""
    return state if caches.tail is None else dataclasses.replace(state, model=caches.tail)


def make_evaluators(
    plan: Plan, engine: Engine, state: TrainState, stream: EvaluationStream
) -> dict[MetricsSplit, Evaluator]:
    """By the name of what they write: "validation" is of the weights that will be used, the averages where there are
    some; then those as they are in training are evaluated as well.
    """
    raw = Evaluator(engine, state.model, stream, jit_compile=plan.jit_compile)
    if not state.averages:
        return {"validation": raw}
    averages = Evaluator(engine, state.model, stream, jit_compile=plan.jit_compile, instead=state.averaged_values())
    return {"validation": averages, "validation_raw": raw}


def open_writers(run: RunDir, first_step: int, more_writers: Sequence[MetricWriter]) -> MetricWriters:
    log = MetricsLog(run.metrics_file)
    log.truncate_after(first_step)
    return MetricWriters([*more_writers, log, TensorBoardWriter(run.tensorboard_dir)])
