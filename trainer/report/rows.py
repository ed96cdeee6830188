"""Settings, plan and environment of a run as rows of a name and a value."""

import dataclasses
import json
from typing import Any

from trainer.config.config import Config

# Longer lists of numbers are shortened to their ends.
_MAX_LISTED = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    value: str
    is_changed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    name: str
    rows: list[Row]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChangedSetting:
    name: str
    value: str
    default: str


def changed_settings(config: Config) -> list[ChangedSetting]:
    """Return the settings that differ from the defaults, as section.name."""
    defaults = Config().model_dump(mode="json")
    return [
        ChangedSetting(name=f"{section}.{name}", value=to_text(value), default=to_text(defaults[section][name]))
        for section, values in config.model_dump(mode="json").items()
        for name, value in values.items()
        if value != defaults[section][name]
    ]


def setting_groups(config: Config) -> list[Group]:
    """Return all settings by section, with a mark at those that differ from the default."""
    defaults = Config().model_dump(mode="json")
    return [
        Group(
            name=section,
            rows=[_row(name, value, is_changed=value != defaults[section][name]) for name, value in values.items()],
        )
        for section, values in config.model_dump(mode="json").items()
    ]


def plan_groups(plan: dict[str, Any]) -> list[Group]:
    """Return the single values of a plan of any version, without lists and objects."""
    rows = [_row(k, v) for k, v in plan.items() if k != "schema_version" and not isinstance(v, list | dict)]
    return [Group(name="plan", rows=rows)] if rows else []


def environment_groups(environment: dict[str, Any]) -> list[Group]:
    """Return a group of the single values, and one for each object or list of objects."""
    groups: dict[str, list[Row]] = {"machine": []}
    for name, value in environment.items():
        if isinstance(value, dict):
            groups[name] = [_row(k, v) for k, v in value.items()]
        elif isinstance(value, list):
            groups[name] = [_row(str(i), v) for i, v in enumerate(value)]
        elif name != "schema_version":
            groups["machine"].append(_row(name, value))
    return [Group(name=name.replace("_", " "), rows=rows) for name, rows in groups.items() if rows]


def _row(name: str, value: Any, *, is_changed: bool = False) -> Row:
    if name.endswith("_bytes") and isinstance(value, int):
        return Row(name=name.removesuffix("_bytes"), value=f"{value / 2**30:.1f} GiB")
    return Row(name=name, value=to_text(value), is_changed=is_changed)


def to_text(value: Any) -> str:
    if isinstance(value, dict):
        rows = [_row(name, part) for name, part in value.items()]
        return ", ".join(f"{row.name} {row.value}" for row in rows)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and len(value) > _MAX_LISTED and all(isinstance(part, int | float) for part in value):
        return f"{len(value)} values, {value[0]:.6g} to {value[-1]:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
