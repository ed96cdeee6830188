"""Serve other models than at the start, as HandleReloadConfigRequest asks."""

import pathlib
from collections.abc import Sequence
from typing import Any

from serving.models.manager import VersionManager
from serving.models.model_config import ModelConfig, models_of
from serving.protocol.status import Code, RequestError
from serving.rpc.model_info import Reload


def make_reload(manager: VersionManager, started_with: Sequence[ModelConfig]) -> Reload:
    """Return what serves the models of a ModelServerConfig.

    A SavedModel is a program, and a request may come from anybody who reaches the port: so only models in the
    directories of those that the server was `started_with` can be asked for.
    """
    places = [_place_of(config.base_path) for config in started_with]

    def reload(config: Any) -> None:
        for wanted in config.model_config_list.config:
            path = pathlib.Path(wanted.base_path).resolve()
            if not any(path.is_relative_to(place) for place in places):
                raise RequestError(
                    Code.PERMISSION_DENIED,
                    f"base_path {wanted.base_path!r} of model {wanted.name!r} is not in a directory of the models that "
                    f"this server was started with ({', '.join(map(str, places))}); put the model there, or start the "
                    "server with it",
                )
        manager.reload(models_of(config))

    return reload


def _place_of(base_path: pathlib.Path) -> pathlib.Path:
    resolved = base_path.resolve()
    # Beside a model at the root of the file system there is everything.
    return resolved if resolved.parent == pathlib.Path(resolved.anchor) else resolved.parent
