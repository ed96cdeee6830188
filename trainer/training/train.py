"""One training run, from a plan to its last checkpoint."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from trainer.config.data import AugmentConfig
from trainer.console.progress import TrainingProgress
from trainer.data.input.pipeline import TrainingStream
from trainer.data.input.read_errors import as_data_errors
from trainer.errors import NonFiniteGradientError
from trainer.evaluation.evaluator import Evaluator
from trainer.run.metric_writers import MetricsLog, MetricsSplit, MetricWriter, MetricWriters, TensorBoardWriter
from trainer.step.state import TrainState
from trainer.system import storage_errors
from trainer.system.stop_signals import StopRequest
from trainer.training.actions import EvaluateAndSave, LogMetrics, SaveEverySecs
from trainer.training.bad_batch import save_bad_batch
from trainer.training.batches import make_steps, stream_of_stage
from trainer.training.context import RunContext
from trainer.training.input import TrainInputs, make_training_stream, make_validation_stream
from trainer.training.loop import run_loop
from trainer.training.memory import memory_policy
from trainer.training.rollback import forget_later, roll_back
from trainer.training.saved_state import save_checkpoint
from trainer.training.staged_step import StagedStep


def train(
    context: RunContext, inputs: TrainInputs, progress: TrainingProgress, more_writers: Sequence[MetricWriter] = ()
) -> None:
    """Train from the step of the state in `context` to the end of its plan.

    Args:
        context: the run; its state is updated in place.
        inputs: the caches of the plan, or the features and the model that takes them.
        progress: shows the steps; see `RunSession.show_progress`.
        more_writers: take the metrics on every worker, and not on the chief alone.

    Raises:
        DataError: a record is damaged.
        StoppedOnRequest: a signal asked for it; everything is saved.
        TrainingError: training cannot go on.
    """
    plan, config, engine, first_step = context.plan, context.config, context.engine, context.step
    training = make_training_stream(plan, config, engine.topology, inputs)
    if inputs.head_model is not None:
        # Cached features are of images that had their random changes already.
        config = config.model_copy(update={"augment": AugmentConfig()})
    evaluators = make_evaluators(context, inputs)
    with open_writers(context, first_step, more_writers) as writers:
        logging = LogMetrics(context, writers, progress)
        saving = EvaluateAndSave(
            context, evaluators=evaluators, writers=writers, progress=progress, exclude_time=logging.exclude_time
        )
        state = with_feature_model(context.state, inputs)
        memory = memory_policy(context, progress.note)
        step = StagedStep(plan, engine, state, config, num_parts=memory.num_parts)

        def save_and_wait(step: int) -> None:
            save_checkpoint(context, step, is_last=True)
            # A launcher ends the whole job when the first worker exits: not before the chief has saved.
            engine.barrier()

        with StopRequest().listen() as stop_request, _keeping_bad_batch(context, training), as_data_errors():
            run_loop(
                steps=make_steps(
                    plan,
                    engine,
                    training,
                    step,
                    state=state,
                    memory=memory,
                    wants_stop=lambda: stop_request.is_set,
                ),
                first_step=first_step,
                last_step=plan.schedule.num_train_steps,
                on_metrics=logging.collect,
                actions=[logging, saving, SaveEverySecs(context)],
                save=save_and_wait,
                is_over=lambda: saving.is_over,
            )
        save_checkpoint(context, context.step, is_last=True)
    # A worker that exits early would break the collectives of the others.
    engine.barrier()


def train_with_rollbacks(context: RunContext, inputs: TrainInputs, progress: TrainingProgress) -> None:
    """Train as `train` does; with `train.on_non_finite=rollback`, go on after too many non-finite gradients."""
    if context.config.train.on_non_finite == "stop":
        train(context, inputs, progress)
        return
    forget_later(context)
    while True:
        try:
            train(context, inputs, progress)
        except NonFiniteGradientError as e:
            if context.step == context.plan.schedule.num_train_steps:
                raise  # no batch is left to go on with
            progress.note(f"warning: {roll_back(context, e)}")
        else:
            return


@contextlib.contextmanager
def _keeping_bad_batch(context: RunContext, stream: TrainingStream) -> Iterator[None]:
    """Save, as the chief, the last batch with a non-finite gradient if the block ends because of too many of them."""
    try:
        yield
    except NonFiniteGradientError as e:
        if not context.is_chief:
            raise
        path = context.run.bad_batch_file
        stage = next(stage for stage in context.plan.schedule.stages if e.step <= stage.stop_step)
        try:
            save_bad_batch(path, stream_of_stage(stream, stage), step=e.step)
        except OSError as error:
            where = storage_errors.describe(error, path)
            told = f"the batch of step {e.step} could not be saved to {where}"
        else:
            told = f"the batch of step {e.step} is in {path}"
        raise NonFiniteGradientError(f"{e}; {told}", step=e.step, first_step=e.first_step) from e


def with_feature_model(state: TrainState, inputs: TrainInputs) -> TrainState:
    """Return `state` with the part of its model that takes features, where the inputs are features."""
    return state if inputs.head_model is None else dataclasses.replace(state, model=inputs.head_model)


def make_evaluators(context: RunContext, inputs: TrainInputs) -> dict[MetricsSplit, Evaluator]:
    """Return evaluators of the validation split by the split name that their metrics are written under.

    "validation" evaluates the weights that will be used: the moving averages where the run keeps them, in which case
    "validation_raw" evaluates the weights that are trained.
    """
    plan, engine = context.plan, context.engine
    stream = make_validation_stream(plan, context.config, engine.topology, inputs)
    state = with_feature_model(context.state, inputs)
    raw = Evaluator(engine, state.model, stream, jit_compile=plan.replicas.jit_compile)
    if not state.averages:
        return {"validation": raw}
    averages = Evaluator(
        engine, state.model, stream, jit_compile=plan.replicas.jit_compile, variable_overrides=state.averaged_values()
    )
    return {"validation": averages, "validation_raw": raw}


def open_writers(context: RunContext, first_step: int, more_writers: Sequence[MetricWriter] = ()) -> MetricWriters:
    """Open `more_writers` and, on the chief, the log of the run and TensorBoard, without lines after `first_step`."""
    if context.saver is None:
        return MetricWriters(more_writers)
    log = MetricsLog(context.run.metrics_file, note=context.saver.note)
    log.truncate_after(first_step)
    tensorboard = TensorBoardWriter(context.run.tensorboard_dir, note=context.saver.note)
    tensorboard.truncate_after(first_step)
    # A run that goes on from a checkpoint finds the metrics up to it.
    context.saver.before_save = log.flush
    return MetricWriters([*more_writers, log, tensorboard])
