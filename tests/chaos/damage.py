"""Damage checkpoints as disks, power cuts and people do; each damage must be found, and the checkpoint before used."""

import pathlib
import random
import shutil
from collections import Counter
from collections.abc import Callable
from typing import Final

import numpy as np

from trainer.errors import RunError
from trainer.run.checkpoint import Checkpoint, CheckpointInfo, DamagedError
from trainer.run.checkpoint_store import CheckpointStore

# zero: what a power cut leaves of blocks that were not flushed. missing: a file. gone: all files, the directory stays.
KINDS: Final = ("flip", "tear", "zero", "missing", "gone")
FULL_DISK: Final = "full disk"
STEPS: Final = (10, 20, 30)


def damage(directory: pathlib.Path, kind: str, where: float) -> str:
    """Damage the checkpoint in `directory` and return what was done; `where` in [0, 1) is the place among all bytes."""
    files = sorted(directory.iterdir())
    at = int(where * sum(file.stat().st_size for file in files))
    for file in files:
        if at < file.stat().st_size:
            break
        at -= file.stat().st_size
    if kind == "gone":
        for other in files:
            other.unlink()
        return f"all files of {directory.name} removed"
    if kind == "missing":
        file.unlink()
        return f"{file.name} removed"
    before = file.read_bytes()
    content = bytearray(before)
    if kind == "flip":
        content[at] ^= 1 << int(where * 8e6) % 8
    elif kind == "tear":
        del content[at:]
    elif kind == "zero":
        content[at:] = bytes(len(content) - at)
        if bytes(content) == before:
            content[at] ^= 1
    else:
        raise ValueError(f"{kind} is no kind of damage; expected one of {', '.join(KINDS)}")
    file.write_bytes(content)
    return f"{file.name}: {kind} at byte {at} of {len(before)}"


def make_checkpoint(step: int, size: int = 8, *, accuracy: float | None = None) -> Checkpoint:
    """Return a small checkpoint whose arrays tell its step."""
    info = CheckpointInfo(
        global_step=step,
        identity="0" * 64,
        num_replicas=1,
        seeds={"train.seed": 7},
        loss_scale=1.0,
        num_good_steps=step,
        num_skipped_steps=0,
        validation={} if accuracy is None else {"accuracy": accuracy, "loss": 1.0},
    )
    arrays = {"weights": np.full([size], step, np.float32)}
    return Checkpoint(info, arrays, {"slot": -arrays["weights"]}, {"weights": arrays["weights"] / 2})


def make_store(path: pathlib.Path, keep: int = 3) -> CheckpointStore:
    return CheckpointStore(path, keep=keep, best_metric="accuracy")


def is_equal(one: Checkpoint, other: Checkpoint) -> bool:
    """Compare two checkpoints, checksums aside."""

    def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
        return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)

    drop = {"sha256", "info_sha256"}
    return one.info.model_dump(exclude=drop) == other.info.model_dump(exclude=drop) and all(
        same(*pair) for pair in zip(one[1:], other[1:], strict=True)
    )


def save_three(path: pathlib.Path) -> None:
    """Save three checkpoints in the directory `path`."""
    for step in STEPS:
        make_store(path).save(make_checkpoint(step))


def check_fallback(path: pathlib.Path, kind: str, where: float) -> None:
    """Damage the newest of three checkpoints in `path`: it must be named and set aside, and the one before be used."""
    *_, before, newest = STEPS
    store, told = make_store(path), []
    damage(store.path(newest), kind, where)
    name = store.path(newest).name
    try:
        store.load(newest)
    except DamagedError as e:
        assert name in str(e), e
    else:
        raise AssertionError(f"{kind} at {where} was not detected")
    found = store.load_latest(told.append)
    assert found is not None and is_equal(found, make_checkpoint(before))
    assert len(told) == 1 and name in told[0] and f"trying the one of step {before}" in told[0], told
    assert store.steps() == list(STEPS[:-1]) and (path / f"damaged-{name}").is_dir()


def check_full_disk(disk: pathlib.Path, free_bytes: int) -> bool:
    """Save on a disk with `free_bytes` left: a whole checkpoint or none; return False if it fitted."""
    shutil.rmtree(disk / "checkpoints", ignore_errors=True)
    path, ballast, newest = disk / "checkpoints", disk / "ballast", 1000
    save_three(path)
    _fill(ballast, shutil.disk_usage(disk).free - free_bytes)
    try:
        make_store(path).save(make_checkpoint(newest, 20_000))
    except OSError:
        is_full = True
    else:
        is_full = False
    finally:
        ballast.unlink()
    found = make_store(path).load_latest(lambda message: None)
    expected = make_checkpoint(STEPS[-1]) if is_full else make_checkpoint(newest, 20_000)
    assert found is not None and is_equal(found, expected)
    assert not list(path.glob(".tmp-*"))
    return is_full


def _fill(ballast: pathlib.Path, num_bytes: int) -> None:
    with ballast.open("wb") as file:
        for _ in range(max(num_bytes, 0) // 4096):
            file.write(bytes(4096))


def inject(
    number: int, seed: str, work: pathlib.Path, small_disk: pathlib.Path | None, on_done: Callable[[int], None]
) -> Counter[str]:
    """Inject `number` damages and return how many of each kind were detected, with the checkpoint before it used.

    Args:
        number: how many.
        seed: of the kinds and places.
        work: an empty directory.
        small_disk: a file system of a few MiB, for saves on a full disk; None: none of these.
        on_done: told the number of damages so far.

    Raises:
        AssertionError: one was not detected, or not the checkpoint before it was used.
    """
    chance, tally = random.Random(seed), Counter[str]()
    original = work / "original"
    save_three(original)
    kinds = [*KINDS, FULL_DISK] if small_disk else list(KINDS)
    while tally.total() < number:
        kind = chance.choice(kinds)
        if kind == FULL_DISK:
            assert small_disk is not None
            if check_full_disk(small_disk, chance.randrange(300_000)):
                tally[kind] += 1
        else:
            path = work / "damaged"
            shutil.copytree(original, path)
            try:
                check_fallback(path, kind, chance.random())
            except (RunError, OSError) as e:
                raise AssertionError(f"{kind} after {tally.total()} damages of seed {seed}: {e!r}") from e
            shutil.rmtree(path)
            tally[kind] += 1
        on_done(tally.total())
    return tally
