"""Build the classifier and its training state, from initial weights or from a checkpoint."""

from collections.abc import Callable

import keras

from trainer.config.config import Config
from trainer.distribute.engine import Engine
from trainer.model.classifier import build_configured
from trainer.model.match_weights import WeightsReport
from trainer.model.weights import load_pretrained
from trainer.plan.plan import Plan
from trainer.run.checkpoint_store import CheckpointStore
from trainer.step.state import TrainState
from trainer.training.saved_state import restore_checkpoint


def make_state(
    plan: Plan,
    config: Config,
    engine: Engine,
    store: CheckpointStore | None,
    on_weights: Callable[[WeightsReport], None] = lambda report: None,
    note: Callable[[str], None] = lambda message: None,
) -> TrainState:
    """Create the state on every replica, with the values of the chief: its last checkpoint, or initial weights.

    `on_weights` is called with the report on a weight file, if one was loaded, and `note` with a sentence on each
    damaged checkpoint, in place of which the one before it is used.

    Raises:
        ModelError: the pretrained weights cannot be had, or do not fit.
        RunError: every checkpoint is damaged.
    """
    keras.utils.set_random_seed(config.train.seed)
    checkpoint = store.load_latest(note) if store else None
    with engine.scope():
        model = build_configured(
            config.model,
            task=plan.model.task,
            num_classes=len(plan.data.class_names),
            image_size_px=plan.model.image_size_px,
            trainable=plan.schedule.stages[-1].trainable,
            batch_norm=plan.model.batch_norm,
            dtype_policy=plan.replicas.precision,
            to_last_layer=plan.model.to_last_layer,
            other_sizes_px=[stage.image_size_px for stage in plan.schedule.stages[:-1]],
        )
        state = TrainState.create(model, config, precision=plan.replicas.precision)
    if checkpoint is not None:
        restore_checkpoint(state, checkpoint)
    else:
        report = load_pretrained(
            model,
            plan.model.backbone,
            plan.model.weights,
            pixels=config.model.pixels,
            features_at=config.model.features_at,
            keeps_head=plan.model.head == "keep",
            to_last_layer=plan.model.to_last_layer,
        )
        if report:
            on_weights(report)
        state.start_averages()
    # A worker on another host may not see the run directory.
    engine.broadcast(state.variables)
    return state
