"""The working directory of the checks, the sizes of what they train, and the commands that they run in it."""

import dataclasses
import json
import os
import pathlib
import subprocess
from collections.abc import Mapping
from typing import Any, Final, Literal

from trainer.distribute.topology import Device
from trainer.errors import TrainerError
from trainer.system import atomic
from trainer.system.child_python import python_command

SizeName = Literal["full", "small"]
# The dataset, the runs and the HLO: needed only where a check has failed.
WORK_DIR_NAME: Final = "work"
_NUM_LAST_LINES: Final = 6


class CommandError(TrainerError):
    """A command of trainer ended with another status than expected; the message has its last lines."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How much the checks train and measure.

    Attributes:
        picture_px: width and height of the JPEG files.
        image_size_px: side of the images that the measured network gets.
        backbone: the measured network; None: the small one that the other checks train.
        rate_steps: steps of each training whose speed is measured.
        equal_steps: steps of each training whose losses are compared.
        all_reduce_bytes: of the tensor that the replicas add up.
        input_secs: of each of the three turns that the input is measured for.
        memory_batch: of the training that gets too little memory, on images of `memory_image_size_px`.
    """

    num_pictures: int
    picture_px: tuple[int, int]
    image_size_px: int
    backbone: str | None
    rate_batch: int
    rate_steps: int
    equal_steps: int
    all_reduce_bytes: int
    input_secs: float
    memory_batch: int
    memory_image_size_px: int
    memory_steps: int = 3


_SIZES: dict[tuple[SizeName, Device], Size] = {
    ("full", "gpu"): Size(
        num_pictures=640,
        picture_px=(500, 375),
        image_size_px=224,
        backbone="efficientnet_lite0",
        rate_batch=128,
        rate_steps=80,
        equal_steps=30,
        all_reduce_bytes=2**30,
        input_secs=2.0,
        memory_batch=256,
        memory_image_size_px=224,
    ),
    ("full", "cpu"): Size(
        num_pictures=320,
        picture_px=(500, 375),
        image_size_px=64,
        backbone="efficientnet_lite0",
        rate_batch=16,
        rate_steps=12,
        equal_steps=30,
        all_reduce_bytes=2**25,
        input_secs=1.0,
        memory_batch=32,
        memory_image_size_px=96,
    ),
    ("small", "gpu"): Size(
        num_pictures=160,
        picture_px=(48, 40),
        image_size_px=32,
        backbone=None,
        rate_batch=32,
        rate_steps=12,
        equal_steps=12,
        all_reduce_bytes=2**26,
        input_secs=0.1,
        memory_batch=32,
        memory_image_size_px=96,
    ),
}
_SIZES["small", "cpu"] = dataclasses.replace(_SIZES["small", "gpu"], all_reduce_bytes=2**22)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """The input of the process of a check: its directory, and the devices of the machine."""

    directory: pathlib.Path
    size_name: SizeName
    num_gpus_wanted: int | None = None
    device: Device = "cpu"
    num_replicas: int = 2

    @property
    def size(self) -> Size:
        return _SIZES[self.size_name, self.device]

    @property
    def dataset(self) -> pathlib.Path:
        return self.directory / WORK_DIR_NAME / "dataset"

    @property
    def network(self) -> pathlib.Path:
        """The small network, a saved Keras model."""
        return self.directory / WORK_DIR_NAME / "network.keras"

    @property
    def results_dir(self) -> pathlib.Path:
        return self.directory / "results"

    def run_dir(self, name: str) -> pathlib.Path:
        return self.directory / WORK_DIR_NAME / "runs" / name

    @property
    def device_settings(self) -> dict[str, Any]:
        """The settings of a training on one replica of the device that is checked."""
        return {"distribute.device": self.device, **({"distribute.gpus": 1} if self.device == "gpu" else {})}

    @property
    def small_network_settings(self) -> dict[str, Any]:
        """The settings of a training of the small network."""
        return {"model.backbone": str(self.network), "model.pixels": "0-1", "model.image_size_px": 32}

    @property
    def measured_network_settings(self) -> dict[str, Any]:
        """The settings of a training of the network whose speed is measured."""
        if self.size.backbone is None:
            return self.small_network_settings
        return {"model.backbone": self.size.backbone, "model.image_size_px": self.size.image_size_px}

    def save(self) -> None:
        """Write this for the processes of the checks."""
        fields = {**dataclasses.asdict(self), "directory": str(self.directory)}
        atomic.write_json(self.directory / "work.json", fields)

    @classmethod
    def load(cls, directory: pathlib.Path) -> "Work":
        """Read what `save` wrote."""
        fields = json.loads((directory / "work.json").read_text(encoding="utf-8"))
        return cls(**{**fields, "directory": directory})


def launch_command(work: Work, name: str, settings: Mapping[str, Any]) -> list[str]:
    """Return the command that trains with `settings` in the run directory `name`, or goes on with the run there."""
    given = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    return python_command("trainer", "launch", f"--data={work.dataset}", f"--run-dir={work.run_dir(name)}", *given)


def run_command(work: Work, command: list[str], log_name: str, variables: Mapping[str, str] | None = None) -> str:
    """Run `command` to its end and return what it printed on standard output; the rest is in the log of `log_name`.

    Raises:
        CommandError: it ended with another status than 0.
    """
    log = log_file(work, log_name)
    with log.open("ab") as output:
        # Not in the directory of the user, whose trainer.yaml would count.
        done = subprocess.run(  # noqa: S603  this very program
            command,
            cwd=work.directory,
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            encoding="utf-8",
            check=False,
        )
    if done.returncode:
        raise CommandError(f"{' '.join(command[3:5])} ended with status {done.returncode}: {last_lines(log)}")
    return done.stdout


def log_file(work: Work, name: str) -> pathlib.Path:
    """Return the file for the output of `name`."""
    path = work.directory / "logs" / f"{name}.txt"
    path.parent.mkdir(exist_ok=True)
    return path


def last_lines(log: pathlib.Path) -> str:
    """Return the last lines of `log` in one, and its name."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()][-_NUM_LAST_LINES:]
    return f"{' / '.join(lines) or 'it printed nothing'} (all of it: {log})"
