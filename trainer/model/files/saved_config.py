"""Check that the configuration of a saved Keras model asks for classes of Keras that compute, and for nothing else.

Keras's own safe mode refuses what was known when it was written, and was got round again and again: by any callable
(CVE-2025-1550), by functions of Keras itself (CVE-2025-8747, CVE-2025-9906), by layers that load other files
(CVE-2025-12058, CVE-2026-1462), by formats it does not look at (CVE-2024-3660, CVE-2025-9905). So here what is known to
be harmless is allowed, before Keras sees any of it.
"""

import json
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import keras

from trainer.errors import ModelError
from trainer.system.private_api.keras_scopes import variables_without_memory

MAX_CONFIG_BYTES = 16 << 20
# They run code, or read other files.
_CODE = frozenset({"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "function", "__lambda__"})
_FILES = frozenset({"StringLookup", "IntegerLookup", "IndexLookup", "TextVectorization", "FeatureSpace"})
_PLAIN_VALUES = frozenset({"__keras_tensor__", "__tensor__", "__numpy__", "__slice__", "__ellipsis__"})
_PUBLIC_MODULES = ("layers", "initializers", "regularizers", "constraints", "losses", "metrics", "optimizers", "models")
_COMPUTE = (
    keras.Operation,  # layers, models, and the functions between them
    keras.Initializer,
    keras.Regularizer,
    keras.constraints.Constraint,
    keras.Loss,
    keras.Metric,
    keras.optimizers.Optimizer,
    keras.optimizers.schedules.LearningRateSchedule,
    keras.DTypePolicy,
)
# Of one image between two layers; the largest of any known backbone is a thousandth of it.
_MAX_NUM_ACTIVATIONS = 1 << 30
# Beside what is stored: seeds, and what a layer makes from its settings.
_NUM_UNSTORED = 1 << 20
REPLACE_LAYERS = (
    "save the model with layers of Keras in its place; or, if you know its author, run its code with --trust"
)
SAVE_WEIGHTS_ALONE = "save the weights alone, with model.save_weights('model.weights.h5')"


def parse_config(content: bytes | str) -> Any:
    """Parse a configuration. Raises ValueError if it is no JSON, or larger than any model's."""
    if len(content) > MAX_CONFIG_BYTES:
        raise ValueError(f"its configuration has {len(content):,} bytes, where {MAX_CONFIG_BYTES:,} are enough for any")
    return json.loads(content)


def check_config(config: Any, path: pathlib.Path, *, fix: str = REPLACE_LAYERS) -> None:
    """Raise ModelError if `config` asks for anything but Keras's own classes.

    The settings that it was compiled with are ignored, since they are never built.
    """
    parts = {k: v for k, v in config.items() if k != "compile_config"} if isinstance(config, dict) else config
    for entry in _objects(parts):
        class_name, module = entry.get("class_name"), entry.get("module")
        if class_name in _PLAIN_VALUES:
            continue
        found = _find(module, class_name)
        if found is None or not {base.__name__ for base in found.__mro__}.isdisjoint(_CODE | _FILES):
            raise _refusal(path, class_name, module, fix)
        if ">" in str(entry.get("registered_name")):
            raise _refusal(path, entry["registered_name"], module, fix)


def check_no_code(config: Any, path: pathlib.Path) -> None:
    """Raise ModelError if the configuration in a file of older Keras holds code.

    Its classes have no modules, so that only code itself can be told; nothing but arrays is ever read from such a file.
    """
    for entry in _objects(config):
        class_name, module = entry.get("class_name"), entry.get("module")
        package = str(module or "keras").split(".")[0]
        if class_name in _CODE or package not in ("keras", "tensorflow", "tf_keras"):
            raise _refusal(path, class_name, module, SAVE_WEIGHTS_ALONE)


def check_sizes(config: Any, path: pathlib.Path, *, num_stored: int) -> None:
    """Build the model of a checked or trusted `config` without memory, and raise ModelError if it is too large.

    That is where it has far more numbers than the `num_stored` of the file, or makes more of one image than any memory
    holds.
    """
    with variables_without_memory():
        # Deserialising changes what it is given.
        model = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)), safe_mode=True)
        num_numbers = sum(math.prod(variable.shape) for variable in model.variables)
    if num_numbers > 2 * num_stored + _NUM_UNSTORED:
        raise ModelError(
            f"{path} describes a model of {num_numbers:,} numbers and holds {num_stored:,} of them; it is refused"
        )
    for operation in getattr(model, "operations", []):
        for tensor in keras.tree.flatten(operation.output):
            size = math.prod(n or 1 for n in tensor.shape)
            if size > _MAX_NUM_ACTIVATIONS:
                raise ModelError(
                    f"{path} makes {size:,} numbers of one image in {operation.name}, where no more than "
                    f"{_MAX_NUM_ACTIVATIONS:,} are allowed; it is refused"
                )


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """Yield all serialised objects in a configuration, however deep."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _find(module: Any, class_name: Any) -> type | None:
    """Return the class of Keras that is meant, if it is one of those that compute; import nothing for it."""
    if not isinstance(class_name, str) or not isinstance(module, str | None):
        return None
    if module is None:
        places = [getattr(keras, name) for name in _PUBLIC_MODULES]
    elif module == "keras" or module.startswith("keras."):
        places = [sys.modules.get(module), _public(module)]
    else:
        return None
    candidates = (vars(place).get(class_name) for place in places if place is not None)
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, _COMPUTE)), None)


def _public(module: str) -> Any:
    place: Any = keras
    for part in module.split(".")[1:]:
        place = vars(place).get(part)
        if not isinstance(place, type(keras)):
            return None
    return place


def _refusal(path: pathlib.Path, class_name: Any, module: Any, fix: str) -> ModelError:
    return ModelError(
        f"{path} asks for {str(class_name)[:100]} of {str(module or 'no module')[:100]}, which is code or a file and "
        f"not a layer of Keras that only computes; {fix}"
    )
