"""A checkpoint is whole or found to be damaged, the newest whole one is used, and training does not wait for a save."""

import json
import pathlib
import shutil
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.chaos.damage import (
    KINDS,
    STEPS,
    check_fallback,
    check_full_disk,
    is_equal,
    make_checkpoint,
    make_store,
    save_three,
)
from trainer.errors import RunError, StorageError
from trainer.run.checkpoint import DamagedError
from trainer.run.checkpoint_saver import CheckpointSaver


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("run") / "checkpoints"
    save_three(path)
    return path


@given(kind=st.sampled_from(KINDS), where=st.floats(0, 1, exclude_max=True))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_named_and_the_checkpoint_before_it_is_used(
    three_checkpoints: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, kind: str, where: float
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "checkpoints"
    shutil.copytree(three_checkpoints, path)
    check_fallback(path, kind, where)
    shutil.rmtree(path)


def test_a_disk_may_be_full_at_any_byte_of_a_save(small_disk: pathlib.Path) -> None:
    was_full = [check_full_disk(small_disk, free_bytes) for free_bytes in range(0, 300_000, 20_000)]
    assert was_full[0] and not was_full[-1]


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
