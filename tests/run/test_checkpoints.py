"""A checkpoint is whole or found to be damaged, the newest whole one is used, and training does not wait for a save."""

import json
import pathlib
import shutil
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.errors import RunError, StorageError
from trainer.run.checkpoint import Checkpoint, CheckpointInfo, DamagedError
from trainer.run.checkpoint_saver import CheckpointSaver
from trainer.run.checkpoint_store import CheckpointStore

STEPS = (10, 20, 30)


def make_checkpoint(step: int, size: int = 8, *, accuracy: float | None = None) -> Checkpoint:
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


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("run") / "checkpoints"
    for step in STEPS:
        make_store(path).save(make_checkpoint(step))
    return path


def is_equal(one: Checkpoint, other: Checkpoint) -> bool:
    def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
        return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)

    drop = {"sha256", "info_sha256"}
    return one.info.model_dump(exclude=drop) == other.info.model_dump(exclude=drop) and all(
        same(*pair) for pair in zip(one[1:], other[1:], strict=True)
    )


def damage(directory: pathlib.Path, kind: str, where: float) -> None:
    """Damage one byte, the end or the whole of a file; `where` in [0, 1) is its place among all bytes."""
    files = sorted(directory.iterdir())
    at = int(where * sum(file.stat().st_size for file in files))
    for file in files:
        if at < file.stat().st_size:
            break
        at -= file.stat().st_size
    content = bytearray(file.read_bytes())
    if kind == "flip":
        content[at] ^= 1 << int(where * 8e6) % 8
    elif kind == "tear":
        del content[at:]
    elif kind == "zero":  # what a power cut leaves of blocks that were not flushed
        content[at:] = bytes(len(content) - at)
        if bytes(content) == file.read_bytes():
            content[at] ^= 1
    if kind == "missing":
        file.unlink()
    else:
        file.write_bytes(content)


@given(kind=st.sampled_from(["flip", "tear", "zero", "missing"]), where=st.floats(0, 1, exclude_max=True))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_named_and_the_checkpoint_before_it_is_used(
    three_checkpoints: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, kind: str, where: float
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "checkpoints"
    shutil.copytree(three_checkpoints, path)
    store, told = make_store(path), []
    damage(store.path(30), kind, where)
    with pytest.raises(DamagedError, match="step-00000030"):
        store.load(30)
    found = store.load_latest(told.append)
    assert found is not None and is_equal(found, make_checkpoint(20))
    assert len(told) == 1 and "step-00000030" in told[0] and "trying the one of step 20" in told[0]
    assert store.steps() == [10, 20] and (path / "damaged-step-00000030").is_dir()
    shutil.rmtree(path)


def test_a_file_of_another_checkpoint_is_a_damage(three_checkpoints: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(three_checkpoints, tmp_path / "checkpoints")
    store = make_store(tmp_path / "checkpoints")
    shutil.copy(store.path(20) / "model.safetensors", store.path(30))
    with pytest.raises(DamagedError, match=r"step-00000030/model\.safetensors is damaged"):
        store.load(30)


def test_where_no_checkpoint_is_whole_the_run_does_not_begin_anew_by_itself(
    three_checkpoints: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(three_checkpoints, tmp_path / "checkpoints")
    store = make_store(tmp_path / "checkpoints")
    for step in STEPS:
        (store.path(step) / "checkpoint.json").unlink()
    with pytest.raises(RunError, match=r"all 3 checkpoints in .* are damaged"):
        store.load_latest(lambda message: None)


def test_a_checkpoint_of_the_version_before_is_read(tmp_path: pathlib.Path) -> None:
    store = make_store(tmp_path)
    store.save(make_checkpoint(10))
    file = store.path(10) / "checkpoint.json"
    fields = json.loads(file.read_text())
    old = {name: value for name, value in fields.items() if name not in ("seeds", "info_sha256")}
    file.write_text(json.dumps(old | {"schema_version": 1}))
    assert store.load(10).info.num_good_steps == 10
    file.write_text(json.dumps(old))
    with pytest.raises(DamagedError, match="own checksum"):
        store.load(10)


def test_the_newest_and_the_best_are_kept_and_no_number_is_never_the_best(tmp_path: pathlib.Path) -> None:
    store = make_store(tmp_path, keep=2)
    for step, accuracy in enumerate([0.5, 0.9, float("nan"), 0.7, None, 0.8], 1):
        store.save(make_checkpoint(step, accuracy=accuracy))
    assert store.steps() == [2, 5, 6] and store.best() == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000005", "step-00000006"]


def test_a_reader_sees_whole_checkpoints_only(tmp_path: pathlib.Path) -> None:
    store, is_over, problems = make_store(tmp_path, keep=1), threading.Event(), []

    def read() -> None:
        while not is_over.is_set():
            for step in store.steps():
                try:
                    assert is_equal(store.load(step), make_checkpoint(step, 10_000))
                except RunError as e:
                    if store.path(step).exists():
                        problems.append(e)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for step in range(1, 60):
        store.save(make_checkpoint(step, 10_000))
    is_over.set()
    for reader in readers:
        reader.join()
    assert not problems


def test_saving_goes_on_beside_the_caller_and_the_last_save_returns_when_it_is_on_the_disk(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, may_write = make_store(tmp_path), threading.Event()
    save = store.save
    monkeypatch.setattr(store, "save", lambda checkpoint: (may_write.wait(600), save(checkpoint)))
    saver = CheckpointSaver(store, note=lambda message: None)
    saver.save(make_checkpoint(1))
    assert saver.newest_step == 1 and store.steps() == []
    may_write.set()
    saver.save(make_checkpoint(2), is_last=True)
    assert store.steps() == [1, 2]


def test_a_disk_that_is_full_for_a_while_costs_one_checkpoint_and_is_told_with_its_figures(
    small_disk: pathlib.Path,
) -> None:
    told: list[str] = []
    saver = CheckpointSaver(make_store(small_disk / "checkpoints"), note=told.append)
    saver.save(make_checkpoint(1))
    saver.wait()
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(2 << 20))
    saver.save(make_checkpoint(2, 50_000))
    saver.wait()
    assert len(told) == 1 and "No space left on device; 0 MiB free" in told[0] and "the one of step 1 stands" in told[0]
    assert saver.newest_step == 1 and is_equal(saver.store.load(1), make_checkpoint(1))
    ballast.unlink()
    saver.save(make_checkpoint(3), is_last=True)
    assert saver.store.steps() == [1, 3]
    assert not list((small_disk / "checkpoints").glob(".tmp-*"))


def test_a_last_checkpoint_that_cannot_be_written_is_an_error_with_the_way_out(tmp_path: pathlib.Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    saver = CheckpointSaver(make_store(tmp_path / "checkpoints"), note=lambda message: None)
    with pytest.raises(StorageError, match=r"checkpoints \(.*; none is there yet; make room and start the same"):
        saver.save(make_checkpoint(1), is_last=True)
