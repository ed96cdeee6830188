"""How long, on how large a batch, and by which update rule."""

from typing import Annotated, Literal

import pydantic

from trainer.settings.section import NonNegative, Positive, Section


class TrainConfig(Section):
    """How long, and on how large a batch."""

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
    epochs: Annotated[float, pydantic.Field(gt=0)] = 10.0
    global_batch_size: Positive = pydantic.Field(64, description="over all replicas; each takes its slice")
    accumulate_steps: Positive = pydantic.Field(
        1, description="parts that a replica's share of the batch is computed in, one after the other, to save memory"
    )
    ema_decay: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = pydantic.Field(
        None,
        description="keep an exponential moving average of the weights and of the batch-norm statistics, as in 0.999; "
        "it is what is evaluated and exported",
    )
    seed: NonNegative = 0
    label_smoothing: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    max_skipped_steps: Positive = pydantic.Field(
        20, description="this many steps in a row with a non-finite gradient stop the run"
    )


class OptimizerConfig(Section):
    """The update rule and the schedule of its learning rate."""

    name: Literal["sgd", "adam", "adamw"] = "adamw"
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = pydantic.Field(
        1e-3, description="at its peak; with a scaling, that of scaling_batch_size"
    )
    scaling: Literal["none", "linear", "sqrt"] = pydantic.Field(
        "none", description="of the learning rate with train.global_batch_size over scaling_batch_size"
    )
    scaling_batch_size: Positive = 256
    momentum: Annotated[float, pydantic.Field(ge=0, lt=1)] = pydantic.Field(0.9, description="sgd only")
    weight_decay: Annotated[float, pydantic.Field(ge=0)] | None = pydantic.Field(
        None,
        description="kernels only; decoupled for adamw, added to the gradient otherwise; null: 1e-4 for adamw, else 0",
    )
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: NonNegative = pydantic.Field(0, description="over which the learning rate rises to its peak")
    warmup_epochs: Annotated[float, pydantic.Field(ge=0)] = pydantic.Field(0.0, description="the same, in epochs")
    clip_norm: Annotated[float, pydantic.Field(gt=0)] | None = pydantic.Field(
        None, description="global norm of the reduced gradient"
    )
