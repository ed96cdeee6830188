"""The sections `checkpoint` and `log`: what a run stores, and how often."""

from typing import Annotated, Literal

import pydantic

from trainer.config.section import Positive, Section


class CheckpointConfig(Section):
    """When checkpoints are saved, and which are kept."""

    every_steps: Positive | None = pydantic.Field(None, description="null: once an epoch")
    every_secs: Annotated[float, pydantic.Field(gt=0)] | None = pydantic.Field(
        600.0, description="also save when this many seconds have passed since the last save; null: never"
    )
    keep: Positive = pydantic.Field(
        2, description="how many of the newest checkpoints are kept; the best one always is"
    )
    best_metric: Literal["accuracy", "loss", "macro_f1", "average_precision", "roc_auc"] = pydantic.Field(
        "accuracy", description="of the validation split; average_precision: binary and multi_label; roc_auc: binary"
    )


class LogConfig(Section):
    """The interval of logged metrics."""

    every_steps: Positive = pydantic.Field(10, description="steps between two lines of metrics.jsonl")
