"""Hold a run directory: one command at a time trains in it, and new run names are claimed atomically.

`RUN/.lock` is locked for processes of one host, and for hosts where the file system passes locks on; `RUN/.lease` is
renewed for hosts that share a file system without. The launcher and the chief worker of one command share both, even
if the chief runs on another host or outlives its launcher for the seconds it needs to save.
"""

import contextlib
import datetime
import functools
import os
import pathlib
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final

from trainer.config.config import Config
from trainer.distribute.launchers import heartbeat
from trainer.errors import RunError, TrainerError
from trainer.run.checkpoint_store import CheckpointStore
from trainer.run.run_dir import RunDir, RunInfo
from trainer.system import atomic, lease, lock

# Environment variable that tells workers the id of the command that started them.
COMMAND_VARIABLE: Final = "TRAINER_COMMAND"
LOCK_NAME: Final = ".lock"
LEASE_NAME: Final = ".lease"
# The purpose of a command that removes something, in place of the identity of the run that it trains.
CLEANING: Final = "clean"
# The workers' output, which is written before the run starts.
LOG_DIR_NAME: Final = "logs"
# How long to wait for the workers of a killed launcher; their guards give them less than this to save.
_ORPHAN_SECS = 30.0
_LOOK_EVERY_SECS = 1.0


def own_command() -> str:
    """Return the id of the command that this process belongs to."""
    own = _command_of(os.getpid())
    return os.environ.get(COMMAND_VARIABLE, own) if heartbeat.VARIABLE in os.environ else own


@functools.cache
def _command_of(pid: int) -> str:
    """Return a new id for each process; one that is forked from another is a command of its own."""
    return uuid.uuid4().hex


@contextlib.contextmanager
def naming_this_command() -> Iterator[None]:
    """Pass the id of this command to workers that are started within the block, through the environment."""
    before = os.environ.get(COMMAND_VARIABLE)
    os.environ[COMMAND_VARIABLE] = own_command()
    try:
        yield
    finally:
        del os.environ[COMMAND_VARIABLE]
        if before is not None:
            os.environ[COMMAND_VARIABLE] = before


@contextlib.contextmanager
def hold_run(run: RunDir, identity: str, *, note: Callable[[str], None], wait_secs: float = 0.0) -> Iterator[None]:
    """Hold the directory of `run` within the block; create it before if needed, remove it after if it is still empty.

    Args:
        run: the run directory.
        identity: the identity of the run to train.
        note: told who is being waited for.
        wait_secs: how long to wait for another command that holds it.

    Raises:
        RunError: another command holds it, or the directory cannot be written.
    """
    deadline_secs = time.monotonic() + wait_secs
    is_told = False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(_hold_once(run, identity, note))
                break
            except lock.HeldError as e:
                if time.monotonic() >= deadline_secs:
                    raise _refusal(run, e.holder) from None
                if not is_told:
                    is_told = True
                    note(f"{run.path} is being trained by {e.holder or 'another command'}; waiting {wait_secs:g} s")
                time.sleep(_LOOK_EVERY_SECS)
            except OSError as e:
                raise RunError(
                    f"the run directory {run.path} cannot be written ({e.strerror}); give --run-dir another directory"
                ) from e
        yield


@contextlib.contextmanager
def _hold_once(run: RunDir, identity: str, note: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock and the lease within the block; raise HeldError if another command has one of them."""
    held = lock.hold_or_refuse(
        run.path / LOCK_NAME,
        owner=own_command(),
        purpose=identity,
        patience_secs=_ORPHAN_SECS,
        on_wait=lambda holder: note(f"{run.path}: the command of {holder} has ended; waiting for its workers to end"),
    )
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held)
        except OSError as e:
            # The lease alone keeps others out, on a file system without locks.
            if not lock.has_no_locks(e):
                raise
        holder = lock.Holder.of_this_process(owner=own_command(), purpose=identity)
        leased = lease.hold(
            run.path / LEASE_NAME,
            holder,
            on_wait=lambda other: note(describe_watch(run, other)),
        )
        try:
            with leased:
                yield
        finally:
            _remove_empty(run)


def check_run_dir(
    run: RunDir, identity: str, *, resume: bool, differences: Callable[[], str], may_be_held: bool = False
) -> None:
    """Check that a run of `identity` can start or resume in the directory of `run`, which this command may hold.

    `differences` describes how an existing run differs. With `may_be_held`, a run that another command holds now is
    no error: it is waited for later.

    Raises:
        RunError: another command holds it, it holds another run or other files, or this run and `resume` is False.
    """
    holder = lock.find_holder(run.path / LOCK_NAME)
    is_held = holder is not None and holder.owner != own_command() and not holder.has_ended
    if is_held and not may_be_held:
        raise _refusal(run, holder)
    if run.path.exists() and not run.path.is_dir():
        raise RunError(f"{run.path} is a file; give --run-dir a new or an empty directory")
    if not run.exists():
        if run.path.is_dir() and not _is_empty_or_begun(run):
            raise RunError(f"{run.path} holds files, but no run; give --run-dir a new or an empty directory")
        return
    if run.identity() != identity:
        raise RunError(
            f"{run.path} holds another run: {differences()}; give --run-dir a new directory, or the settings of the "
            f"run that is there ({run.config_file})"
        )
    if not resume:
        raise RunError(f"{run.path} holds this run already and --no-resume was given; give --run-dir a new directory")


def _is_empty_or_begun(run: RunDir) -> bool:
    """Return whether a directory without `run.json` has at most what a command writes before it."""
    names = {path.name for path in run.path.iterdir()} - {LOG_DIR_NAME, LOCK_NAME, LEASE_NAME}
    first_files = {name for name in names if name == run.config_file.name or name.startswith(atomic.TEMPORARY_PREFIX)}
    # Without a lock, a config.yaml is somebody else's.
    return not names - (first_files if (run.path / LOCK_NAME).exists() else set())


def describe_differences(run: RunDir, config: Config, info: RunInfo) -> str:
    """Describe how the settings that determine the weights, `config` and `info`, differ from those of `run`.

    Every one that differs is named, with both values.
    """
    there = run.info()
    differences = []
    if there.dataset_hash != info.dataset_hash:
        moved = there.dataset_dir != info.dataset_dir
        before, now = (there.dataset_dir, info.dataset_dir) if moved else (there.dataset_hash, info.dataset_hash)
        differences.append(f"its dataset is {before[:200]}, and now {now[:200]}")
    if there.class_names != info.class_names:
        differences.append(f"its classes are {_show(there.class_names)}, and now {_show(info.class_names)}")
    if there.num_train_examples != info.num_train_examples:
        differences.append(f"it has {there.num_train_examples} training images, and now {info.num_train_examples}")
    if there.precision != info.precision:
        differences.append(f"its precision is {there.precision}, and now {info.precision}")
    if there.head != info.head:
        differences.append(f"its model.head is {there.head}, and now {info.head}")
    try:
        there_config, is_changed = run.config(), run.has_changed_settings()
    except TrainerError as e:
        return "; ".join([*differences, f"its settings cannot be compared ({e})"])
    for name, was, is_now in _differing_settings(there_config, config, info):
        differences.append(f"its {name} is {_show(was)}, and now {_show(is_now)}")
    if is_changed:
        differences.append(f"its {run.config_file.name} was changed since it began, and is to be as it was")
    return "; ".join(differences) or "it was made by another version of trainer, which had other rules"


def find_unfinished_run(
    runs_dir: pathlib.Path,
    identity: str,
    config: Config,
    *,
    num_train_steps: int,
    note: Callable[[str], None],
    may_be_held: bool = False,
) -> RunDir | None:
    """Return the newest run of `identity` in `runs_dir` if it is unfinished; report unreadable runs to `note`.

    With `may_be_held`, a run that another command is training now is returned as well, to be waited for.

    Raises:
        RunError: another command is training it.
    """
    for path in runs_dir.glob(f"*/{LOCK_NAME}"):
        holder = lock.find_holder(path)
        if holder is not None and holder.purpose == identity and not holder.has_ended:
            if may_be_held:
                return RunDir(path.parent)
            raise _refusal(RunDir(path.parent), holder)
    for path in sorted(runs_dir.glob("*/run.json"), key=_modified_at, reverse=True):
        run = RunDir(path.parent)
        try:
            if run.identity() != identity:
                continue
            steps = CheckpointStore.of_run(run, config.checkpoint).steps()
        except (RunError, OSError) as e:
            note(f"note: {path} is skipped in the search for a run to resume: {e}")
            continue
        return run if max(steps, default=0) < num_train_steps else None
    return None


def name_new_run(runs_dir: pathlib.Path) -> RunDir:
    """Return an unused run directory in `runs_dir`, named after the current time; `claim_new_run` creates it."""
    name = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    number = 1
    while (path := runs_dir / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return RunDir(path)


def claim_new_run(runs_dir: pathlib.Path) -> RunDir:
    """Create a new run directory; two commands in the same second get one each.

    Raises:
        RunError: `runs_dir` cannot be written.
    """
    while True:
        run = name_new_run(runs_dir)
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
            run.path.mkdir()
        except FileExistsError:
            if runs_dir.is_dir():
                continue
            raise RunError(
                f"{runs_dir.resolve()} is a file, but runs are kept there; give --run-dir a directory"
            ) from None
        except OSError as e:
            raise RunError(
                f"{runs_dir.resolve()} cannot be written ({e.strerror}), and runs are kept there; give --run-dir a "
                "directory elsewhere"
            ) from None
        return run


def _refusal(run: RunDir, holder: lock.Holder | None) -> RunError:
    who = holder or "another command"
    if holder is not None and holder.has_ended:
        who = f"the workers of a command that has ended ({holder})"
    done = "cleaned" if holder is not None and holder.purpose == CLEANING else "trained"
    return RunError(
        f"{run.path} is being {done} by {who}; wait until that has ended (--wait 3600 does), or give --run-dir a new "
        "directory"
    )


def describe_watch(run: RunDir, holder: lock.Holder) -> str:
    """Say that the lease of `run` is watched, since its holder is on another host."""
    return f"{run.path} was held by {holder}; watching for up to {lease.LEASE_SECS:.0f} s whether it still is"


def _remove_empty(run: RunDir) -> None:
    """Remove a run directory that holds only the lock; a process that waits for the lock notices."""
    with contextlib.suppress(OSError):
        if all(path.name == LOCK_NAME for path in run.path.iterdir()):
            (run.path / LOCK_NAME).unlink(missing_ok=True)
            run.path.rmdir()


def _modified_at(path: pathlib.Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _differing_settings(before: Config, now: Config, info: RunInfo) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, old value, new value) of each setting that changes the identity of one of the two by itself."""

    def decides(config: Config, section: str, key: str, value: Any) -> bool:
        settings = getattr(config, section).model_copy(update={key: value})
        return identity(config) != identity(config.model_copy(update={section: settings}))

    def identity(config: Config) -> str:
        return config.identity(dataset_hash=info.dataset_hash, precision=info.precision)

    for section, settings in now:
        for key, value in settings:
            was = getattr(getattr(before, section), key)
            if was != value and (decides(now, section, key, was) or decides(before, section, key, value)):
                yield f"{section}.{key}", was, value


def _show(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
