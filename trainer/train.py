"""One training run, from a plan to its last checkpoint."""

import pathlib

import keras

from trainer.actions import EvaluateAndSave, LogMetrics, assign_slots
from trainer.checkpoint import CheckpointStore
from trainer.config import Config
from trainer.data.augment import resolve_augmentation
from trainer.data.geometry import Geometry
from trainer.data.order import ExampleOrder
from trainer.data.pipeline import EvaluationStream, TrainingStream, open_split
from trainer.distribute.engine import Engine
from trainer.distribute.topology import BatchDivision
from trainer.evaluate import Evaluator
from trainer.loop import StopRequest, run_loop
from trainer.metric_writers import MetricsLog, MetricWriters, TensorBoardWriter
from trainer.model.classifier import assign_arrays, build_classifier, load_pretrained, saved_variables
from trainer.plan import Plan
from trainer.progress import TrainingProgress
from trainer.run_dir import RunDir
from trainer.steps import TrainState, TrainStep


def train(
    plan: Plan,
    config: Config,
    run: RunDir,
    engine: Engine,
    state: TrainState,
    store: CheckpointStore | None,
    progress: TrainingProgress,
) -> None:
    """Trains from the step of `state` to the end of `plan`. Workers other than the chief have no `store`.

    Raises:
        StoppedOnRequest: a signal asked for it; everything is saved.
        TrainingError: training cannot go on.
    """
    first_step = int(state.global_step.numpy())
    with _open_writers(run, first_step) if store else MetricWriters([]) as writers:
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
            identity=plan.identity(config),
            state=state,
            store=store,
            evaluator=_make_evaluator(plan, config, engine, state),
            writers=writers,
            progress=progress,
            leave_out=logging.leave_out,
        )
        step = TrainStep(engine, state, config, num_train_steps=plan.num_train_steps, jit_compile=plan.jit_compile)

        def save_and_wait(step: int) -> None:
            saving.save(step)
            # A launcher ends the whole job when the first worker exits: not before the chief has saved.
            engine.barrier()

        with StopRequest().listen() as stop_request:
            run_loop(
                batches=engine.distribute(_training_dataset(plan, config, engine, first_step)),
                train_step=step,
                first_step=first_step,
                on_metrics=logging.collect,
                actions=[logging, saving],
                save=save_and_wait,
                should_stop=lambda: engine.any(stop_request.is_set),
            )


def geometry_of(plan: Plan, config: Config) -> Geometry:
    return Geometry(image_size_px=plan.image_size_px, resize=config.data.resize)


def make_state(plan: Plan, config: Config, engine: Engine, store: CheckpointStore | None) -> TrainState:
    """The state to start from, on every replica: the chief's last checkpoint, or the pretrained weights.

    Raises:
        ModelError: the pretrained weights cannot be had, or do not fit.
        RunError: the last checkpoint is damaged.
    """
    keras.utils.set_random_seed(config.train.seed)
    steps = store.steps() if store else []
    with engine.scope():
        model = build_classifier(
            backbone=plan.backbone,
            num_classes=len(plan.class_names),
            image_size_px=plan.image_size_px,
            trainable=plan.trainable,
            batch_norm=plan.batch_norm,
            dropout=config.model.dropout,
            dtype_policy=plan.precision,
        )
        state = TrainState.create(model, config, precision=plan.precision)
    if store and steps:
        _restore(state, store, steps[-1])
    else:
        load_pretrained(model, plan.backbone, plan.weights)
    # A worker on another host may not see the run directory.
    engine.broadcast(state.variables)
    return state


def _restore(state: TrainState, store: CheckpointStore, step: int) -> None:
    store.clear_temporaries()
    info, model, slots = store.load(step)
    assign_arrays(saved_variables(state.model), model, origin=f"the checkpoint of step {step}")
    assign_slots(state, slots)
    state.loss_scale.scale.assign(info.loss_scale)
    state.loss_scale.num_good_steps.assign(info.num_good_steps)
    state.global_step.assign(step)
    state.num_skipped_steps.assign(info.num_skipped_steps)


def _open_writers(run: RunDir, first_step: int) -> MetricWriters:
    log = MetricsLog(run.metrics_file)
    log.truncate_after(first_step)
    return MetricWriters([log, TensorBoardWriter(run.tensorboard_dir)])


def _training_dataset(plan: Plan, config: Config, engine: Engine, first_step: int) -> object:
    stream = TrainingStream(
        reader=open_split(pathlib.Path(plan.dataset_dir), "train"),
        order=ExampleOrder(plan.num_train_examples, config.train.seed),
        geometry=geometry_of(plan, config),
        augmentation=resolve_augmentation(config.augment),
        division=BatchDivision(plan.global_batch_size, plan.num_replicas),
        topology=engine.topology,
        num_positions=plan.num_positions,
        num_threads=config.data.num_parallel_reads,
    )
    return stream.dataset(first_step, plan.num_train_steps)


def _make_evaluator(plan: Plan, config: Config, engine: Engine, state: TrainState) -> Evaluator:
    stream = EvaluationStream(
        reader=open_split(pathlib.Path(plan.dataset_dir), "validation"),
        geometry=geometry_of(plan, config),
        per_replica_batch_size=plan.per_replica_batch_size,
        topology=engine.topology,
        num_threads=config.data.num_parallel_reads,
    )
    return Evaluator(engine, state.model, stream, jit_compile=plan.jit_compile)
