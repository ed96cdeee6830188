"""The settings of a run that `trainer launch --resume RUN` goes on with, on these workers and with these changes."""

import json
from typing import Any, Final

from trainer.config.config import Config, apply_changes, parse_config
from trainer.config.distribute import DistributeConfig
from trainer.run.run_dir import RunDir

_OTHER_WORKERS: Final = ("hosts", "host_discovery_script", "min_replicas", "max_replicas")
# The settings of the run that another number of workers, given now, takes the place of.
_REPLACED_BY: Final = {
    "gpus": ("device", "replicas", *_OTHER_WORKERS),
    "replicas": ("gpus", *_OTHER_WORKERS),
    "hosts": ("gpus", "replicas", "host_discovery_script", "min_replicas", "max_replicas"),
    "host_discovery_script": ("gpus", "replicas", "hosts"),
}
_OF_ONE_PROCESS: Final = ("auto", "single", "mirrored")


def settings_of_run(
    run: RunDir, overrides: list[str] | None = None, *, flags: dict[str, dict[str, Any]] | None = None
) -> Config:
    """Return the settings of `run`, its dataset and its precision as resolved, changed by `overrides` and `flags`.

    Devices and workers that are given replace those of the run, so that none of the old ones needs to be taken back.

    Raises:
        RunError: `run` is no run directory.
        ConfigError: its settings are invalid, or a change is.
    """
    info, values = run.info(), run.config().model_dump(mode="json")
    given: dict[str, Any] = {}
    apply_changes(given, overrides, flags)
    values["data"]["path"] = info.dataset_dir
    values["distribute"]["precision"] = info.precision
    if isinstance(workers := given.get("distribute"), dict):
        _replace_workers(values["distribute"], workers)
    apply_changes(values, overrides, flags)
    return parse_config(values, origin=f"the settings of {run.path}, as changed")


def to_arguments(config: Config) -> list[str]:
    """Return the arguments that give a worker every setting, also where it sees neither the run nor ./trainer.yaml."""
    # JSON is YAML, in which the command takes its values.
    return [
        f"--set={section}.{name}={json.dumps(value)}"
        for section, settings in config.model_dump(mode="json").items()
        for name, value in settings.items()
    ]


def _replace_workers(distribute: dict[str, Any], given: dict[str, Any]) -> None:
    defaults = DistributeConfig().model_dump(mode="json")
    replaced = {name for key, names in _REPLACED_BY.items() if given.get(key) is not None for name in names}
    if given.get("device", distribute["device"]) != distribute["device"]:
        replaced |= {"gpus", "replicas"}
    if given.get("strategy") in _OF_ONE_PROCESS:
        replaced |= set(_OTHER_WORKERS)
    if (replaced or given.get("gpus") or given.get("replicas")) and distribute["strategy"] in _OF_ONE_PROCESS:
        replaced.add("strategy")
    for name in replaced:
        distribute[name] = defaults[name]
