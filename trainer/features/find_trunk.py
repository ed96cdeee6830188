"""What the trunk of a configuration will be, found without giving a single weight a value."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras.src.backend.common import global_state

from trainer.config.model import ModelConfig
from trainer.features.decision import TrunkFacts
from trainer.features.trunk import cut_classifier
from trainer.model.classifier import build_configured


@functools.lru_cache(maxsize=8)
def find_trunk(model_config: str, **settings: Any) -> TrunkFacts | None:
    """The facts of the trunk of the classifier that `build_configured` makes; None where it has none.

    `model_config` is a `ModelConfig` as JSON, `settings` the other arguments.
    """
    config = ModelConfig.model_validate_json(model_config)
    cut = cut_classifier(without_values(lambda: build_configured(config, **settings)))
    return None if cut is None else TrunkFacts(cut.layer, cut.feature_shape, _is_linear(cut.tail))


def _is_linear(tail: Any) -> bool:
    _, *rest = tail.layers
    return len(rest) == 1 and isinstance(rest[0], keras.layers.Dense) and rest[0].activation is keras.activations.linear


def without_values(build: Callable[[], Any]) -> Any:
    """The model that `build` makes, with variables that have shapes and no values: two thirds of the time are those."""
    with keras.StatelessScope(initialize_variables=False):
        model = build()
    # Keras would give them values within the next scope of this kind, which may be inside a graph.
    global_state.set_global_attribute("uninitialized_variables", [])
    return model
