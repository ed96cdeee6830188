"""The configuration of a run: its sections, their defaults, and how recipes, files and `--set` change them.

A recipe is a YAML file with the settings that differ from the defaults; `--set section.key=value` changes one setting,
whose value is read as YAML. Every run stores its full configuration as `RUN/config.yaml`.
"""

import datetime
import difflib
import hashlib
import itertools
import json
import pathlib
import re
from typing import Any, Literal

import pydantic
import yaml
from yaml.constructor import ConstructorError

from trainer.config.data import AugmentConfig, DataConfig
from trainer.config.distribute import DistributeConfig
from trainer.config.features import FeaturesConfig
from trainer.config.identity import decisive_settings, first_decisive_settings
from trainer.config.model import ModelConfig
from trainer.config.saving import CheckpointConfig, LogConfig
from trainer.config.section import Section
from trainer.config.training import OptimizerConfig, TrainConfig
from trainer.config.yaml_text import read_yaml
from trainer.errors import ConfigError

RECIPES_DIR = pathlib.Path(__file__).resolve().parents[2] / "recipes"


class Config(Section):
    """The whole configuration of a run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    augment: AugmentConfig = AugmentConfig()
    features: FeaturesConfig = FeaturesConfig()
    distribute: DistributeConfig = DistributeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    def to_yaml(self) -> str:
        """Return all settings as YAML, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def identity(self, *, dataset_hash: str, precision: str, head: Literal["keep", "replace"] = "replace") -> str:
        """Return the SHA-256 of everything that decides the trained weights; a run resumes only where it is the same.

        `trainer.config.identity` lists the settings that do not. `precision` and `head` are the resolved ones.
        """
        settings = decisive_settings(self)
        return _hash_of({**settings, "head": head} if head == "keep" else settings, dataset_hash, precision)

    def first_identity(self, *, dataset_hash: str, precision: str) -> str:
        """Return the identity that earlier versions recorded for a run with these settings."""
        return _hash_of(first_decisive_settings(self), dataset_hash, precision)


def _hash_of(settings: dict[str, Any], dataset_hash: str, precision: str) -> str:
    parts = {**settings, "dataset": dataset_hash, "precision": precision}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_config(
    path: pathlib.Path | None = None,
    overrides: list[str] | None = None,
    *,
    recipe: str | None = None,
    flags: dict[str, dict[str, Any]] | None = None,
) -> Config:
    """Return the defaults, changed by the recipe, the file at `path`, the `overrides` and the `flags`, in this order.

    Each of `overrides` is `section.key=value`; `flags` are settings by section.

    Raises:
        ConfigError: The file is missing or not a mapping, a key is unknown (the message names the nearest), or a value
            is of the wrong type or out of range.
    """
    values: dict[str, Any] = _read_recipe(find_recipe(recipe)) if recipe is not None else {}
    if path is not None:
        for section, settings in _read_recipe(path).items():
            if isinstance(values.get(section), dict) and isinstance(settings, dict):
                values[section].update(settings)
            else:
                values[section] = settings
    apply_changes(values, overrides, flags)
    return parse_config(values, origin=str(path) if path else "the configuration")


def apply_changes(
    values: dict[str, Any], overrides: list[str] | None = None, flags: dict[str, dict[str, Any]] | None = None
) -> None:
    """Change the nested mapping of settings `values` by `overrides` and `flags`, as `load_config` does.

    Raises:
        ConfigError: an override is not of the form section.key=value.
    """
    for override in overrides or []:
        _apply_override(values, override)
    for section, settings in (flags or {}).items():
        if settings:
            values.setdefault(section, {}).update(settings)


def list_recipes() -> dict[str, str]:
    """Return the names of the recipes that come with the trainer, each with the first sentence of its file."""
    found = {}
    for path in sorted(RECIPES_DIR.glob("*.yaml")):
        lines = itertools.takewhile(lambda line: line.startswith("# "), path.read_text(encoding="utf-8").splitlines())
        comment = " ".join(line.removeprefix("# ").strip() for line in lines)
        found[path.stem] = re.split(r"(?<=[.:;]) ", comment, maxsplit=1)[0].rstrip(".:;")
    return found


def find_recipe(name: str) -> pathlib.Path:
    """Return the file of a recipe; raise ConfigError, with the nearest name, if there is none of this name."""
    known = list_recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"expected auto, or one of {', '.join(known)}."
        raise ConfigError(f"there is no recipe {name!r}; {hint} A file of your own is given with --config")
    return RECIPES_DIR / f"{name}.yaml"


def parse_config(values: dict[str, Any], *, origin: str) -> Config:
    """Validate a nested mapping of settings; error messages call it `origin`."""
    try:
        return Config.model_validate(values)
    except pydantic.ValidationError as e:
        raise ConfigError(_explain(e.errors()[0], origin)) from None


def _read_recipe(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"the recipe {path} does not exist; give --config the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as e:
        raise ConfigError(f"the recipe {path} is not readable YAML: {' '.join(str(e).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"the recipe {path} holds a {type(values).__name__}; expected sections such as 'train:'")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not (equals and dot and section and name):
        raise ConfigError(f"--set {override!r} is not of the form section.key=value, such as train.epochs=5")
    try:
        value = read_yaml(text)
    except yaml.YAMLError as e:
        problem = f"{e.problem}; write it once" if isinstance(e, ConstructorError) else "it is not YAML; quote it"
        raise ConfigError(f"--set {override!r}: the value {text!r} cannot be read: {problem}") from None
    if value is not None and not isinstance(values.setdefault(section, {}), dict):
        raise ConfigError(f"{section!r} of the recipe is not a section, so --set {override!r} cannot change it")
    values.setdefault(section, {})[name] = value


def _explain(error: Any, origin: str) -> str:
    location = [str(part) for part in error["loc"]]
    name = ".".join(location[:2])
    if error["type"] == "extra_forbidden":
        return f"{origin} has no setting {name!r}; {_nearest(location)}"
    message = error["msg"].removeprefix("Value error, ")
    expected = message[0].lower() + message[1:]
    if error["type"] == "bool_type":
        expected += "; write true or false"
    if error["type"] == "string_type" and isinstance(error["input"], int | float | datetime.date):
        expected += (
            ", and YAML reads this as another kind of value; write it in quotes, on a command line in two pairs: --set "
            f"{name}='\"TEXT\"'"
        )
    return f"{name} in {origin} is {error['input']!r}: {expected}"


def _nearest(location: list[str]) -> str:
    sections = {name: list(field.annotation.model_fields) for name, field in Config.model_fields.items()}  # type: ignore[union-attr]
    if len(location) == 1:
        known, given = list(sections), location[0]
    else:
        known, given = [f"{location[0]}.{key}" for key in sections[location[0]]], ".".join(location[:2])
        elsewhere = [f"{s}.{k}" for s, keys in sections.items() for k in keys if k == location[1]]
        if elsewhere:
            return f"did you mean {elsewhere[0]!r}?"
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
