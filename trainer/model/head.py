"""Build what follows the backbone: pooling, hidden layers, dropout and the layer of the logits."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import keras

from trainer.config.model import ModelConfig
from trainer.model.layers.batch_norm import SynchronizedBatchNormalization
from trainer.model.layers.dropout import ExampleDropout

Pooling = Literal["average", "max", "flatten"]


@keras.saving.register_keras_serializable("trainer")
class ReferenceLogit(keras.layers.Layer):  # type: ignore[misc]
    """A layer from a logit [batch, 1] to two, 0 for the first class: their softmax is the sigmoid of the one."""

    def call(self, logits: Any) -> Any:
        return keras.ops.concatenate([keras.ops.zeros_like(logits), logits], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """The layers from a backbone's output, [batch, height, width, channels] or [batch, channels], to logits."""

    has_one_logit: bool = False
    pooling: Pooling = "average"
    hidden_units: Sequence[int] = ()
    hidden_batch_norm: bool = False
    dropout: float = 0.0
    is_synchronized: bool = False

    @classmethod
    def of(cls, config: ModelConfig, *, has_one_logit: bool, is_synchronized: bool) -> "Head":
        return cls(
            has_one_logit=has_one_logit,
            pooling=config.pooling,
            hidden_units=config.hidden_units,
            hidden_batch_norm=config.hidden_batch_norm,
            dropout=config.dropout,
            is_synchronized=is_synchronized,
        )

    def __call__(self, features: Any, num_classes: int) -> Any:
        """Logits [batch, num_classes], float32 under every precision."""
        x = self._pool(features) if len(features.shape) == 4 else features
        for i, units in enumerate(self.hidden_units, start=1):
            x = self._hide(x, units, i)
        if self.dropout and not self.hidden_units:
            x = ExampleDropout(self.dropout, name="head_dropout")(x)
        assert num_classes == 2 or not self.has_one_logit, "one logit decides between two classes"
        num_logits = 1 if self.has_one_logit else num_classes
        logits = keras.layers.Dense(num_logits, dtype="float32", name="head")(x)
        return ReferenceLogit(dtype="float32", name="reference_logit")(logits) if self.has_one_logit else logits

    def _pool(self, features: Any) -> Any:
        kinds = {
            "average": keras.layers.GlobalAveragePooling2D,
            "max": keras.layers.GlobalMaxPooling2D,
            "flatten": keras.layers.Flatten,
        }
        return kinds[self.pooling](name="pool")(features)

    def _hide(self, x: Any, units: int, number: int) -> Any:
        name = f"hidden{number}"
        x = keras.layers.Dense(units, name=name)(x)
        if self.hidden_batch_norm:
            kind = SynchronizedBatchNormalization if self.is_synchronized else keras.layers.BatchNormalization
            x = kind(name=f"{name}_bn")(x)
        x = keras.layers.ReLU(name=f"{name}_relu")(x)
        if self.dropout:
            # Salts of the backbone's own rise from 1.
            x = ExampleDropout(self.dropout, salt=-number, name=f"{name}_dropout")(x)
        return x
