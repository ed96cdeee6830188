"""Keep the programs that XLA compiles in a folder, so that the next process need not compile them again.

    DIRECTORY/<version of TensorFlow>-<key>/   programs.json   xla_compile_cache__<hash>__<hash>__XLA_CPU_JIT.pb

TensorFlow names a program after what was compiled, but not after the processor, the GPU and the flags that it was
compiled for; these are in the key. It reads a program without a checksum: a damaged one fails the training step, or
computes something else. So `programs.json` has the SHA-256 of each, and what differs is removed before TensorFlow
starts. Who may read or write programs shares `.lock` until its process ends; its modification is the last start.
"""

import atexit
import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import sys
from typing import Any, Final

from trainer.errors import ConfigError
from trainer.system import atomic, in_use, lock
from trainer.system.nvidia_smi import list_driver_gpus

SCHEMA_VERSION: Final = 1
LOCK_NAME: Final = ".lock"
PROGRAMS_NAME: Final = "programs.json"
_FLAGS_VARIABLE: Final = "TF_XLA_FLAGS"
_PROGRAM = re.compile(r"(.+__)?\d+__\d+__XLA_\w+\.pb")
# A step whose programs cannot be written fails.
_MIN_FREE_BYTES: Final = 2**30
_held: dict[pathlib.Path, int] = {}


def use(directory: pathlib.Path) -> pathlib.Path:
    """Let XLA keep its programs below `directory` from now on, and return their folder; call before TensorFlow starts.

    Raises:
        ConfigError: nothing can be kept there.
    """
    directory = directory.resolve()
    if re.search(r"[\s'\"]", str(directory)):
        raise ConfigError(
            f"distribute.xla_cache_dir is {directory}, which has a space or a quote, and {_FLAGS_VARIABLE} takes none; "
            "name another folder with --set distribute.xla_cache_dir=DIRECTORY"
        )
    folder = directory / _name_of_this_machine()
    flag = f"--tf_xla_persistent_cache_directory={folder}"
    flags = os.environ.get(_FLAGS_VARIABLE, "").split()
    if flag not in flags and "tensorflow" in sys.modules:
        raise ConfigError(
            f"distribute.xla_cache_dir is {directory}, but TensorFlow runs in this process already, and reads where to "
            f"keep programs only at its start; set {_FLAGS_VARIABLE}={flag} before Python starts"
        )
    if folder not in _held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _check_room(folder)
            _held[folder] = _hold(folder)
        except OSError as e:
            raise ConfigError(
                f"distribute.xla_cache_dir is {directory}, which cannot be written ({e.strerror or e}); name another "
                "folder with --set distribute.xla_cache_dir=DIRECTORY, or null"
            ) from e
        atexit.register(record, folder)
    if flag not in flags:
        os.environ[_FLAGS_VARIABLE] = " ".join([*flags, flag])
    return folder


def record(folder: pathlib.Path) -> None:
    """Record the checksums of programs that are new in `folder`; the next process removes those without one."""
    with contextlib.suppress(OSError), lock.hold_folder(folder):
        known = _read(folder)
        new = {path.name: _sha256_of(path) for path in _list_programs(folder) if path.name not in known}
        if new or not (folder / PROGRAMS_NAME).exists():
            content = {"schema_version": SCHEMA_VERSION, "sha256": {**known, **new}}
            atomic.write_json(folder / PROGRAMS_NAME, content)


def is_folder_of_programs(folder: pathlib.Path) -> bool:
    """Return whether `folder` was made by `use`."""
    return (folder / PROGRAMS_NAME).is_file() and (folder / LOCK_NAME).is_file()


def count_programs(folder: pathlib.Path) -> int:
    return len(_list_programs(folder))


def _hold(folder: pathlib.Path) -> int:
    """Share the lock of `folder`, after the removal of programs that are damaged."""
    (folder / LOCK_NAME).touch()
    with in_use.hold_alone(folder / LOCK_NAME) as others:
        known = _read(folder)
        for path in _list_programs(folder):
            # One without a checksum is of a process that still runs, or was killed.
            is_right = known[path.name] == _sha256_of(path) if path.name in known else others != "free"
            if not is_right:
                path.unlink(missing_ok=True)
    if not (folder / PROGRAMS_NAME).exists():
        record(folder)
    return in_use.share(folder / LOCK_NAME)


def _check_room(folder: pathlib.Path) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < _MIN_FREE_BYTES:
        raise OSError(f"{free_bytes / 2**20:,.0f} MiB are free, and {_MIN_FREE_BYTES / 2**20:,.0f} are needed")


def _name_of_this_machine() -> str:
    version = importlib.metadata.version("tensorflow")
    gpus = [(gpu.name, gpu.driver) for gpu in list_driver_gpus() or []]
    decisive = [platform.machine(), _describe_processor(), gpus, os.environ.get("XLA_FLAGS", "")]
    return f"{version}-{hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:12]}"


def _describe_processor() -> list[str]:
    """Return model and instruction sets of the processor, as Linux describes the first one."""
    try:
        first, _, _ = pathlib.Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")
    except OSError:
        return [platform.processor()]
    return [line for line in first.splitlines() if re.match(r"(vendor_id|model|model name|flags|Features)\s*:", line)]


def _list_programs(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if _PROGRAM.fullmatch(path.name))


def _read(folder: pathlib.Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / PROGRAMS_NAME).read_bytes())["sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _sha256_of(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
