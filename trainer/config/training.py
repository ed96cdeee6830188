"""The sections `train` and `optimizer`."""

from typing import Annotated, Literal

import pydantic

from trainer.config.model import Trainable
from trainer.config.section import MAX_COUNT, NonNegative, Positive, Section, Seed

# The task of a model. single_label: one class of several. binary: one of two, the second being the positive one, with a
# single logit. multi_label: any number of classes.
ModelTask = Literal["single_label", "binary", "multi_label"]


class Unfreezing(Section):
    """A step of gradual unfreezing: from this epoch on, `trainable` is trained; see `model.trainable`."""

    epoch: Annotated[float, pydantic.Field(gt=0)]
    trainable: Trainable


class TrainConfig(Section):
    """The task, the loss, the length of the run and the batch."""

    task: Literal["auto"] | ModelTask = pydantic.Field(
        "auto",
        description="single_label: one class an image, softmax; binary: one of two, with one logit; multi_label: any "
        "number of classes an image, a sigmoid each; auto: as the dataset has them",
    )
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    focal_gamma: Annotated[float, pydantic.Field(gt=0)] = pydantic.Field(
        2.0, description="focal: how little the examples that are right already count"
    )
    class_weights: Literal["none", "balanced"] | dict[str, Annotated[float, pydantic.Field(gt=0)]] = pydantic.Field(
        "none",
        description="of the loss, by class name. balanced: in inverse proportion to how frequent the class is; of "
        "several labels an image, the weight of having the class against not having it",
    )

    solver: Literal["gradient", "ridge"] = pydantic.Field(
        "gradient",
        description="ridge: the head of a frozen backbone in closed form, in one step; epochs, batches and the "
        "optimizer then have no part in it",
    )
    ridge_strengths: list[Annotated[float, pydantic.Field(gt=0)]] = pydantic.Field(
        [10.0 ** (-5 + 7 * i / 19) for i in range(20)],
        min_length=1,
        description="solver=ridge: relative to the mean eigenvalue of the features' covariance; the best on validation "
        "is kept",
    )
    epochs: Annotated[float, pydantic.Field(gt=0, le=MAX_COUNT)] = 10.0
    global_batch_size: Positive = pydantic.Field(64, description="over all replicas; each takes its slice")
    accumulate_steps: Positive | Literal["auto"] = pydantic.Field(
        "auto",
        description="parts that a replica's share of the batch is computed in, one after the other, to save memory; "
        "auto: 1, doubled each time that memory does not suffice",
    )
    ema_decay: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = pydantic.Field(
        None,
        description="keep an exponential moving average of the weights and of the batch-norm statistics, as in 0.999; "
        "it is what is evaluated and exported",
    )
    unfreeze: list[Unfreezing] = pydantic.Field(
        [], description="gradual unfreezing, as in [{epoch: 2, trainable: top:3}, {epoch: 4, trainable: all}]"
    )
    patience: Positive | None = pydantic.Field(
        None, description="end after so many evaluations in a row without a new best checkpoint.best_metric"
    )
    seed: Seed = 0
    label_smoothing: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    max_skipped_steps: Positive = pydantic.Field(
        20, description="this many steps in a row with a non-finite gradient stop the run, or roll it back"
    )
    on_non_finite: Literal["stop", "rollback"] = pydantic.Field(
        "stop",
        description="after max_skipped_steps. rollback: go on with the weights of the checkpoint before these steps, "
        "and leave out the batches since then",
    )
    max_rollbacks: Positive = pydantic.Field(3, description="on_non_finite=rollback: so many in a run, then it stops")

    @property
    def num_parts(self) -> int:
        """The number of parts that training starts with."""
        return 1 if self.accumulate_steps == "auto" else self.accumulate_steps


class OptimizerConfig(Section):
    """The update rule and the schedule of its learning rate."""

    name: Literal["sgd", "adam", "adamw", "lars"] = "adamw"
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = pydantic.Field(
        1e-3, description="at its peak; with a scaling, that of scaling_batch_size"
    )
    scaling: Literal["none", "linear", "sqrt"] = pydantic.Field(
        "none", description="of the learning rate with train.global_batch_size over scaling_batch_size"
    )
    scaling_batch_size: Positive = 256
    momentum: Annotated[float, pydantic.Field(ge=0, lt=1)] = pydantic.Field(0.9, description="sgd and lars")
    trust_coefficient: Annotated[float, pydantic.Field(gt=0)] = pydantic.Field(
        0.001, description="lars: step of a layer relative to the norm of its weights"
    )
    layer_decay: Annotated[float, pydantic.Field(gt=0, le=1)] = pydantic.Field(
        1.0, description="the learning rate of a block of the backbone is that of the next one times this"
    )
    weight_decay: Annotated[float, pydantic.Field(ge=0)] | None = pydantic.Field(
        None,
        description="kernels only; decoupled for adamw, added to the gradient otherwise; null: 1e-4 for adamw, else 0",
    )
    schedule: Literal["constant", "cosine", "linear", "step", "one_cycle"] = pydantic.Field(
        "cosine", description="cosine, linear: down to 0; step: see step_epochs; one_cycle: up for 30% of the run, down"
    )
    step_epochs: list[Annotated[float, pydantic.Field(gt=0)]] = pydantic.Field(
        [], description="schedule=step: at these epochs the learning rate falls"
    )
    step_factor: Annotated[float, pydantic.Field(gt=0, lt=1)] = pydantic.Field(0.1, description="schedule=step")
    warmup_steps: NonNegative = pydantic.Field(0, description="over which the learning rate rises to its peak")
    warmup_epochs: Annotated[float, pydantic.Field(ge=0)] = pydantic.Field(0.0, description="the same, in epochs")
    clip_norm: Annotated[float, pydantic.Field(gt=0)] | None = pydantic.Field(
        None, description="global norm of the reduced gradient"
    )
