"""Find out what the trunk of a configuration will be, without memory for its weights."""

import functools
from typing import Any

import keras

from trainer.config.model import ModelConfig
from trainer.features.decision import TrunkFacts
from trainer.features.trunk import cut_classifier
from trainer.model.classifier import build_configured
from trainer.system.private_api.keras_scopes import variables_without_memory


@functools.lru_cache(maxsize=8)
def find_trunk(model_config: str, **settings: Any) -> TrunkFacts | None:
    """Return facts about the trunk of a configured classifier, built without memory; None if it has no trunk.

    `model_config` is a `ModelConfig` as JSON, `settings` the other arguments of `build_configured`.
    """
    config = ModelConfig.model_validate_json(model_config)
    with variables_without_memory():  # two thirds of the time would go into initial values
        classifier = build_configured(config, **settings)
    cut = cut_classifier(classifier)
    return None if cut is None else TrunkFacts(cut.layer, cut.feature_shape, _is_linear(cut.tail))


def _is_linear(tail: Any) -> bool:
    _, *rest = tail.layers
    return len(rest) == 1 and isinstance(rest[0], keras.layers.Dense) and rest[0].activation is keras.activations.linear
