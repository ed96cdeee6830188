"""Read which models to serve from TensorFlow Serving's `models.config`, as it is.

    model_config_list {
      config {
        name: "cats"  base_path: "/models/cats"  model_platform: "tensorflow"
        model_version_policy { specific { versions: 3 versions: 4 } }
        version_labels { key: "stable" value: 3 }
        version_labels { key: "canary" value: 4 }
      }
    }

The rules are those of tensorflow_serving/model_servers/server_core.cc.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.models.version_policy import LATEST, VersionPolicy
from serving.protocol.status import RequestError, invalid
from trainer.errors import ArtifactError

# The only platform of TensorFlow Serving's own binary.
PLATFORM: Final = "tensorflow"
_NO_LABELS: Final[Mapping[str, int]] = {}


class ModelConfig(NamedTuple):
    """A model to serve.

    Attributes:
        name: in requests.
        base_path: a base path or a single SavedModel; links in it are followed anew each time it is looked at.
        policy: which of its versions.
        labels: versions by label; each must be served.
    """

    name: str
    base_path: pathlib.Path
    policy: VersionPolicy = LATEST
    labels: Mapping[str, int] = _NO_LABELS


def read_model_config(path: pathlib.Path) -> list[ModelConfig]:
    """Read a `models.config`. Raises ArtifactError if the file is missing, malformed or asks for what is not there."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ArtifactError(f"{path} cannot be read ({e}); give --model-config-file a models.config") from None
    try:
        proto = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
        return models_of(proto)
    except text_format.ParseError as e:
        raise ArtifactError(
            f"{path} is not a ModelServerConfig in text form ({e}); it begins with: model_config_list {{ config {{"
        ) from None
    except RequestError as e:
        raise ArtifactError(f"{path}: {e.message}") from None


def models_of(proto: Any) -> list[ModelConfig]:
    """Return the models of a ModelServerConfig.

    Raises:
        RequestError: (400) the configuration is one that TensorFlow Serving would refuse too.
    """
    if proto.WhichOneof("config") != "model_config_list":
        raise invalid("the configuration holds no model_config_list; name the models in one")
    names = [config.name for config in proto.model_config_list.config]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise invalid(f"Illegal to list model {twice[0]} multiple times in config list; give each model its own name")
    return [_model_of(config) for config in proto.model_config_list.config]


def _model_of(config: Any) -> ModelConfig:
    name, base_path = config.name, pathlib.Path(config.base_path)
    if not name:
        raise invalid(f"the model at base_path {str(base_path)!r} has no name; give it one with name")
    _check_platform(config)
    if not base_path.is_absolute():
        raise invalid(
            f"Expected model {name} to have an absolute path or URI; got base_path()={config.base_path}; write "
            f"{pathlib.Path.cwd() / base_path}"
        )
    if not base_path.is_dir():
        raise invalid(
            f"Could not find base path {base_path} for servable {name}; create it, or correct base_path of {name}"
        )
    return ModelConfig(name, base_path, _policy_of(config.model_version_policy), dict(config.version_labels))


def _check_platform(config: Any) -> None:
    has_type = config.model_type != model_server_config_pb2.MODEL_TYPE_UNSPECIFIED
    if has_type and config.model_platform:
        raise invalid(
            "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform; "
            f"leave model_type out of {config.name}"
        )
    platform = PLATFORM if config.model_type == model_server_config_pb2.TENSORFLOW else config.model_platform
    if platform != PLATFORM:
        raise invalid(
            f'Model {config.name} requests unsupported platform {platform!r}; write model_platform: "{PLATFORM}"'
        )


def _policy_of(proto: Any) -> VersionPolicy:
    match proto.WhichOneof("policy_choice"):
        case "all":
            return VersionPolicy("all")
        case "specific":
            return VersionPolicy("specific", versions=frozenset(proto.specific.versions))
        case "latest":
            return VersionPolicy("latest", num_versions=max(proto.latest.num_versions, 1))
        case _:
            return LATEST
