"""`RUN/checkpoints/step-00001200/`: everything that a run needs to resume exactly. This module owns the format.

    checkpoint.json        step, identity of the run, seeds, loss scale, validation metrics, checksums
    model.safetensors      every variable of the model, batch-norm statistics included
    optimizer.safetensors  every slot of the optimizer
    averages.safetensors   the model with the moving averages of its weights, if the run keeps them

A checkpoint appears whole or not at all: it is written under another name, flushed with its directory, and renamed.
`checkpoint.json` holds the SHA-256 of each other file and of itself, so that any damage is found. Safetensors
files hold only arrays, so opening a checkpoint from elsewhere runs no code. The order of examples is arithmetic on the
step, and random numbers on seed and position, so there is no iterator or generator state to save.
"""

import hashlib
import os
import pathlib
import re
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pydantic
import safetensors
import safetensors.numpy

from trainer.errors import RunError
from trainer.system import atomic
from trainer.system.safe_read import check_regular, read_small

SCHEMA_VERSION: Final = 2
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
AVERAGES_FILE = "averages.safetensors"
INFO_FILE = "checkpoint.json"

Arrays = dict[str, np.ndarray[Any, Any]]


class DamagedError(RunError):
    """A file of a checkpoint is missing, torn or changed; the message names it."""


class CheckpointInfo(pydantic.BaseModel):
    """The contents of `checkpoint.json`. Version 1 had neither `seeds` nor `info_sha256`."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    global_step: int
    # The hash of the configuration, the dataset and the precision.
    identity: str
    num_replicas: int
    # The seeds of the run by the name of their setting.
    seeds: dict[str, int] = {}
    loss_scale: float
    num_good_steps: int
    num_skipped_steps: int
    # Metrics of the whole validation split at this step; empty if it was not evaluated.
    validation: dict[str, float] = {}
    # By the name of the file.
    sha256: dict[str, str] = {}
    # Of the bytes of this file while this is empty.
    info_sha256: str = ""


class Checkpoint(NamedTuple):
    """A checkpoint in memory. Arrays are named by `classifier.named_arrays` and in `saved_state`."""

    info: CheckpointInfo
    model: Arrays
    optimizer: Arrays
    # The model's arrays with averaged weights; empty without train.ema_decay.
    averages: Arrays


def write_checkpoint(checkpoint: Checkpoint, path: pathlib.Path) -> None:
    """Write `checkpoint` as the directory `path`, which appears whole and flushed, or not at all.

    Beside the arrays themselves it needs memory for a copy of the largest file.

    Raises:
        OSError: the disk is full, or the directory cannot be written.
    """
    files = {MODEL_FILE: checkpoint.model, OPTIMIZER_FILE: checkpoint.optimizer}
    if checkpoint.averages:
        files[AVERAGES_FILE] = checkpoint.averages
    with atomic.new_directory(path) as directory:
        hashes = {}
        for file_name, arrays in files.items():
            _write_arrays(arrays, directory / file_name)
            hashes[file_name] = _sha256_of(directory / file_name)
        info = checkpoint.info.model_copy(update={"sha256": hashes, "info_sha256": ""})
        info = info.model_copy(update={"info_sha256": hashlib.sha256(_to_bytes(info)).hexdigest()})
        (directory / INFO_FILE).write_bytes(_to_bytes(info))


def read_checkpoint(path: pathlib.Path) -> Checkpoint:
    """Read the checkpoint in the directory `path`, each byte checked.

    Raises:
        DamagedError: a file is missing, torn or changed.
    """
    info = read_info(path)
    return Checkpoint(
        info,
        read_arrays(path, MODEL_FILE, info),
        read_arrays(path, OPTIMIZER_FILE, info),
        read_arrays(path, AVERAGES_FILE, info) if AVERAGES_FILE in info.sha256 else {},
    )


def check_checkpoint(path: pathlib.Path) -> None:
    """Check each byte of the checkpoint in the directory `path`, without a copy in memory.

    Raises:
        DamagedError: a file is missing, torn or changed.
    """
    info = read_info(path)
    for file_name in info.sha256:
        try:
            check_file(path / file_name, info)
        except OSError as e:
            raise DamagedError(f"{path / file_name} cannot be read ({e.strerror}); remove {path}") from None


def read_info(path: pathlib.Path) -> CheckpointInfo:
    """Read `checkpoint.json` of the directory `path`.

    Raises:
        DamagedError: it is missing, torn or changed.
        RunError: the directory is gone, as after a newer checkpoint was saved.
    """
    if not path.exists():
        raise RunError(f"{path} has been removed since, because the run is still training; run the command again")
    try:
        content = read_small(path / INFO_FILE)
        info = CheckpointInfo.model_validate_json(content)
    except (OSError, pydantic.ValidationError) as e:
        raise DamagedError(
            f"{path} is not a complete checkpoint ({INFO_FILE}: {type(e).__name__}); remove it to use the others"
        ) from None
    unsigned = content.replace(info.info_sha256.encode(), b"")
    if info.schema_version > 1 and info.info_sha256 != hashlib.sha256(unsigned).hexdigest():
        raise DamagedError(f"{path / INFO_FILE} is damaged: it fails its own checksum; remove {path}")
    return info


def read_arrays(path: pathlib.Path, file_name: str, info: CheckpointInfo) -> Arrays:
    """Read one file of arrays of the checkpoint in the directory `path`.

    Raises:
        DamagedError: it is missing, torn or changed.
    """
    file = path / file_name
    try:
        check_file(file, info)
        arrays: Arrays = safetensors.numpy.load_file(file)
    except (OSError, ValueError, safetensors.SafetensorError) as e:
        raise DamagedError(
            f"{file} is not a weight file of this checkpoint ({' '.join(str(e).split())[:200]}); remove {path}"
        ) from None
    return arrays


def check_file(file: pathlib.Path, info: CheckpointInfo) -> None:
    """Compare a file of arrays with its SHA-256 in `info`.

    Raises:
        DamagedError: it is another one, or `info` has none.
        OSError: it cannot be read.
    """
    check_regular(file)
    if _sha256_of(file) != info.sha256.get(file.name):
        raise DamagedError(f"{file} is damaged: its SHA-256 is not the one in {INFO_FILE}; remove {file.parent}")


def _write_arrays(arrays: Arrays, file: pathlib.Path) -> None:
    try:
        safetensors.numpy.save_file(arrays, file)
    except safetensors.SafetensorError as e:
        # The library has no other way to tell what the file system said.
        if not (told := re.search(r"os error (\d+)", str(e))):
            raise
        number = int(told[1])
        raise OSError(number, os.strerror(number), str(file)) from e


def _sha256_of(file: pathlib.Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _to_bytes(info: CheckpointInfo) -> bytes:
    return f"{info.model_dump_json(indent=2)}\n".encode()
