"""One training run, from a plan to its last checkpoint."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from trainer.actions import EvaluateAndSave, LogMetrics, assign_averages, assign_slots
from trainer.bad_batch import save_bad_batch
from trainer.checkpoint import CheckpointStore
from trainer.config import Config
from trainer.data.batch import Batch
from trainer.data.pipeline import EvaluationStream, TrainingStream
from trainer.distribute.engine import Engine
from trainer.distribute.launchers import heartbeat
from trainer.errors import NonFiniteGradientError
from trainer.evaluate import Evaluator
from trainer.loop import StopRequest, run_loop
from trainer.metric_writers import MetricsLog, MetricsSplit, MetricWriter, MetricWriters, TensorBoardWriter
from trainer.model.classifier import assign_arrays, build_configured, saved_variables
from trainer.model.weight_fit import WeightsReport
from trainer.model.weights import load_pretrained
from trainer.patience import has_lost_patience
from trainer.plan import Plan
from trainer.progress import TrainingProgress
from trainer.run_dir import RunDir
from trainer.settings.data import AugmentConfig
from trainer.staged_step import StagedStep
from trainer.stages import Stage
from trainer.steps import StepMetrics
from trainer.streams import Caches, make_training_stream, make_validation_stream
from trainer.train_state import TrainState


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


def make_steps(
    plan: Plan, engine: Engine, stream: TrainingStream, step: StagedStep, first_step: int
) -> Callable[[int], StepMetrics]:
    """Makes at most so many steps from `first_step` on: several in one call where this process trains alone.

    With others, one: each of them is seen by the guard of its worker, and is a commit of an elastic job.
    """
    if engine.topology.num_workers > 1:
        batches = staged_batches(plan, engine, stream, first_step)
        one_step = _with_heartbeat(step)
        return lambda _: one_step(next(batches))
    iterators: dict[Stage, Any] = {}

    def of_stage(num_steps: int) -> StepMetrics:
        stage = step.stage
        if stage not in iterators:
            iterators.clear()
            iterators[stage] = iter(_distribute_stage(stage, engine, stream, first_step))
        return step.several(iterators[stage], num_steps)

    return of_stage


def staged_batches(plan: Plan, engine: Engine, stream: TrainingStream, first_step: int) -> Iterator[Batch]:
    """The per-replica batches of all steps from `first_step` on, in each stage of the plan at its image size."""
    for stage in plan.stages:
        if first_step < stage.stop_step:
            yield from _distribute_stage(stage, engine, stream, first_step)


def stream_of_stage(stream: TrainingStream, stage: Stage) -> TrainingStream:
    """The same stream with images in the size of `stage`."""
    geometry = dataclasses.replace(stream.geometry, image_size_px=stage.image_size_px)
    return dataclasses.replace(stream, geometry=geometry)


def _distribute_stage(stage: Stage, engine: Engine, stream: TrainingStream, first_step: int) -> Any:
    """The steps of `stage` from `first_step` on."""
    staged = stream_of_stage(stream, stage)
    return engine.distribute(staged.dataset(max(stage.start_step, first_step), stage.stop_step))


def _with_heartbeat(step: StagedStep) -> Callable[[Batch], StepMetrics]:
    """Tells the guard of this worker, where there is one, that a batch was there and that its step was made."""
    pulse = heartbeat.of_this_worker()
    if pulse is None:
        return step

    def beat_and_step(batch: Batch) -> StepMetrics:
        pulse.beat()
        metrics = step(batch)
        pulse.beat()
        return metrics

    return beat_and_step


def make_state(
    plan: Plan,
    config: Config,
    engine: Engine,
    store: CheckpointStore | None,
    on_weights: Callable[[WeightsReport], None] = lambda report: None,
) -> TrainState:
    """The state to start from, on every replica: the chief's last checkpoint, or the pretrained weights.

    `on_weights` is told what of a weight file fitted, where one was loaded.

    Raises:
        ModelError: the pretrained weights cannot be had, or do not fit.
        RunError: the last checkpoint is damaged.
    """
    keras.utils.set_random_seed(config.train.seed)
    steps = store.steps() if store else []
    with engine.scope():
        model = build_configured(
            config.model,
            task=plan.task,
            num_classes=len(plan.class_names),
            image_size_px=plan.image_size_px,
            trainable=plan.stages[-1].trainable,
            batch_norm=plan.batch_norm,
            dtype_policy=plan.precision,
            to_last_layer=plan.to_last_layer,
            other_sizes_px=[stage.image_size_px for stage in plan.stages[:-1]],
        )
        state = TrainState.create(model, config, precision=plan.precision)
    if store and steps:
        _restore(state, store, steps[-1])
    else:
        report = load_pretrained(
            model,
            plan.backbone,
            plan.weights,
            pixels=config.model.pixels,
            features_at=config.model.features_at,
            keeps_head=plan.head == "keep",
            to_last_layer=plan.to_last_layer,
        )
        if report:
            on_weights(report)
        state.start_averages()
    # A worker on another host may not see the run directory.
    engine.broadcast(state.variables)
    return state


def _restore(state: TrainState, store: CheckpointStore, step: int) -> None:
    store.clear_temporaries()
    info, model, slots, averages = store.load(step)
    assign_arrays(saved_variables(state.model), model, origin=f"the checkpoint of step {step}")
    assign_slots(state, slots)
    if state.averages:
        assign_averages(state, averages)
    state.loss_scale.scale.assign(info.loss_scale)
    state.loss_scale.num_good_steps.assign(info.num_good_steps)
    state.global_step.assign(step)
    state.num_skipped_steps.assign(info.num_skipped_steps)


def open_writers(run: RunDir, first_step: int, more_writers: Sequence[MetricWriter]) -> MetricWriters:
    log = MetricsLog(run.metrics_file)
    log.truncate_after(first_step)
    return MetricWriters([*more_writers, log, TensorBoardWriter(run.tensorboard_dir)])
