"""`trainer clean` removes what nobody needs, and nothing that a running command holds: with real processes."""

import contextlib
import errno
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NoReturn

import pytest
from typer.testing import CliRunner

from tests.cleaning.conftest import clean, make_old, make_run, reasons, write_features
from trainer.cleaning.clean import _remove_from
from trainer.cleaning.find import find_places
from trainer.cleaning.limits import Decision
from trainer.cli.app import app
from trainer.errors import StorageError, UsageError
from trainer.features.store import FeatureStore
from trainer.run import claim
from trainer.run.checkpoint_store import CheckpointStore
from trainer.run.run_dir import RunDir
from trainer.system import atomic, in_use, lease, lock

HOLDING_PROCESS = pathlib.Path(__file__).with_name("holding_everything.py")


def paths_below(root: pathlib.Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@contextlib.contextmanager
def holding_everything(root: pathlib.Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, str(HOLDING_PROCESS), str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_each_kind_is_listed_with_its_reason_and_then_removed(root: pathlib.Path) -> None:
    make_old(root, time.time(), days=8)
    before = paths_below(root)
    listed = clean(root)
    assert paths_below(root) == before, "without --yes, nothing is touched"
    going = reasons(listed, root, "remove")
    features, programs = next(root.glob("photos.features/train-*")), next(root.glob("xla/*"))
    assert going == {
        "run/checkpoints/step-00000020": "not written to for 8 d",
        "run/checkpoints/step-00000030": "not written to for 8 d",
        "run/checkpoints/damaged-step-00000015": "not written to for 8 d",
        "run/.tmp-plan.json-0a1b2c3d": "not written to for 8 d",
        "run/tensorboard/.tmp-events-0a1b2c3d": "not written to for 8 d",
        "run/.lease-0a1b2c3d": "not written to for 8 d",
        "photos.cache/train-32px-0123456789abcdef": "not used for 8 d",
        str(features.relative_to(root)): "not used for 8 d",
        str(programs.relative_to(root)): "not used for 8 d",
        ".tmp-export-0a1b2c3d": "not written to for 8 d",
        ".dataset.preparing": "not written to for 8 d",
    }
    assert reasons(listed, root, "keep") == {
        "run/checkpoints/step-00000010": "the best checkpoint",
        "run/checkpoints/step-00000040": "the newest whole checkpoint",
    }
    removed = clean(root, "--yes")
    assert (
        reasons(removed, root, "removed") == going and removed["num_bytes"]["removed"] == listed["num_bytes"]["remove"]
    )
    gone = {path for path in before if any(path == name or path.startswith(f"{name}/") for name in going)}
    assert paths_below(root) - {"run/.lock"} == before - gone
    store = CheckpointStore(root / "run" / "checkpoints", keep=9, best_metric="accuracy")
    assert store.steps() == [10, 40] and store.load(40).info.global_step == 40
    assert reasons(clean(root, "--yes"), root, "removed", "remove") == {}


def test_what_a_running_command_holds_stays_until_kill_9(root: pathlib.Path) -> None:
    """One process trains, prepares, exports, has features open and uses programs of XLA."""
    with holding_everything(root) as process:
        make_old(root, time.time(), days=30)
        make_old(pathlib.Path(tempfile.gettempdir()), time.time(), days=30)
        before = paths_below(root)
        who = f"process {process.pid} on "
        answer = clean(root, tempfile.gettempdir(), "--older-than", "0s", "--keep", "0", "--yes")
        kept = reasons(answer, root.parent, "keep")
        removed = reasons(answer, root.parent, "removed")
        assert set(removed) == {"root/photos.cache/train-32px-0123456789abcdef", "root/.tmp-export-0a1b2c3d"}
        assert before - paths_below(root) == {path.removeprefix("root/") for path in removed} | {
            ".tmp-export-0a1b2c3d/model.onnx",
            "photos.cache/train-32px-0123456789abcdef/header.json",
            "photos.cache/train-32px-0123456789abcdef/pixels.uint8",
        }
        held = {path: reason for path, reason in kept.items() if not path.startswith("root/run/")}
        assert sorted(held.values()) == [
            f"being prepared by {lock.find_holder(root / '.dataset.preparing' / 'lock')}",
            *["in use by a running process"] * 4,
        ]
        of_run = {reason for path, reason in kept.items() if path.startswith("root/run/")}
        assert all(reason.startswith(f"being trained by {who}") for reason in of_run) and len(kept) == 5 + 8
    make_old(root, time.time(), days=30)
    make_old(pathlib.Path(tempfile.gettempdir()), time.time(), days=30)
    left = clean(root, tempfile.gettempdir(), "--yes")
    assert reasons(left, root.parent, "keep").keys() == {
        "root/run/checkpoints/step-00000010",
        "root/run/checkpoints/step-00000040",
    }
    assert len(reasons(left, root.parent, "removed")) == 11
    assert not list(pathlib.Path(tempfile.gettempdir()).iterdir())


def test_a_run_of_another_host_stays_as_long_as_its_lease_is_renewed(
    root: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = lock.Holder(host="far", pid=1, since="noon", owner="another", process="another-boot/pid:[1]/1-1")
    kwargs = {**lease.find_holder.__kwdefaults__, "lease_secs": 1.2}
    monkeypatch.setattr(lease.find_holder, "__kwdefaults__", kwargs)
    with lease.hold(root / "run" / claim.LEASE_NAME, far, lease_secs=1.2):
        make_old(root, time.time(), days=30)
        answer = clean(root / "run", "--yes")
        assert {entry["reason"] for entry in answer["entries"]} == {"being trained by process 1 on far since noon"}
    make_old(root, time.time(), days=30)
    assert "run/checkpoints/step-00000020" in reasons(clean(root / "run"), root, "remove")


def test_the_least_recently_used_goes_until_the_rest_is_small_enough(tmp_path: pathlib.Path) -> None:
    now_secs = time.time()
    for name, days in (("a", 3.0), ("b", 2.0), ("c", 1.0)):
        write_features(tmp_path / f"{name}.features")
        make_old(tmp_path / f"{name}.features", now_secs, days)
    answer = clean(tmp_path)
    assert {entry["reason"] for entry in answer["entries"]} == {
        f"used {days} d ago, less than 7 d" for days in (3, 2, 1)
    }
    size = answer["entries"][0]["num_bytes"]
    make_run(tmp_path / "run", {10: 0.5})  # needed, so that it does not count
    answer = clean(tmp_path, "--keep", f"{2 * size}B")
    ((path, reason),) = reasons(answer, tmp_path, "remove").items()
    assert path.startswith("a.features/") and reason.startswith("least recently used, beyond --keep")
    both = clean(tmp_path, "--keep", f"{2 * size}B", "--older-than", "36h")
    assert len(reasons(both, tmp_path, "remove")) == 2, "what one of the two limits says goes"
    assert len(reasons(clean(tmp_path, "--keep", "0"), tmp_path, "remove")) == 3


def test_the_newest_whole_checkpoint_stays_where_newer_ones_are_damaged(root: pathlib.Path) -> None:
    (root / "run/checkpoints/step-00000040/model.safetensors").write_bytes(b"torn")
    make_old(root, time.time(), days=30)
    answer = clean(root / "run", "--yes")
    assert reasons(answer, root / "run/checkpoints", "keep") == {
        "step-00000010": "the best checkpoint",
        "step-00000030": "the newest whole checkpoint",
        "step-00000040": "damaged; the next start sets it aside",
    }


@pytest.mark.parametrize("harm", ["all damaged", "no settings", "no metric"])
def test_every_checkpoint_stays_where_it_cannot_be_known_which_is_needed(root: pathlib.Path, harm: str) -> None:
    run = RunDir(root / "run")
    if harm == "no settings":
        run.config_file.write_text("nonsense: 1")
    elif harm == "no metric":
        run.config_file.write_text(run.config_file.read_text().replace("best_metric: accuracy", "best_metric: roc_auc"))
    else:
        for path in run.checkpoints_dir.glob("step-*/optimizer.safetensors"):
            path.unlink()
    make_old(root, time.time(), days=30)
    kept = reasons(clean(root / "run", "--yes", "--keep", "0"), run.checkpoints_dir, "keep")
    assert kept.keys() == {f"step-000000{step}" for step in (10, 20, 30, 40)}
    expected = "no checkpoint of this run is whole" if harm == "all damaged" else "it cannot be known which"
    assert all(reason.startswith(expected) for reason in kept.values())


def test_the_only_copy_of_a_dataset_is_no_unfinished_work(tmp_path: pathlib.Path) -> None:
    """`prepare --overwrite` was killed between its two renames."""
    (tmp_path / ".dataset.preparing" / "replaced").mkdir(parents=True)
    (tmp_path / ".dataset.preparing" / "lock").touch()
    make_old(tmp_path, time.time(), days=30)
    # The dataset itself is not there: its name is enough.
    answer = clean(tmp_path / "dataset", "--yes")
    assert "has the only copy of" in reasons(answer, tmp_path, "keep")[".dataset.preparing"]
    (tmp_path / "dataset").mkdir()
    make_old(tmp_path, time.time(), days=30)
    assert ".dataset.preparing" in reasons(clean(tmp_path / "dataset", "--yes"), tmp_path, "removed")


def test_what_others_have_left_and_what_links_lead_to_is_not_ours(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    theirs = tmp_path / "theirs"
    for name in (".tmp-1", ".cache/x", "a.cache/train/header.json", ".git/.tmp-x-0a1b2c3d", "run.preparing/lock"):
        (theirs / name).parent.mkdir(parents=True, exist_ok=True)
        (theirs / name).write_text("{}")
    (theirs / "link").symlink_to(root)
    (theirs / ".tmp-link-0a1b2c3d").symlink_to(root)
    make_old(theirs, time.time(), days=30)
    assert clean(theirs, "--yes")["entries"] == []


def test_without_locks_nothing_of_the_last_day_is_removed(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_locks(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", without_locks)
    make_old(root, time.time(), days=0.9)
    kept = reasons(clean(root, "--older-than", "0s"), root, "keep")
    for path in (".tmp-export-0a1b2c3d", ".dataset.preparing", "photos.cache/train-32px-0123456789abcdef"):
        assert kept[path].startswith("used in the last day; this file system has no locks")
    make_old(root, time.time(), days=1.1)
    assert set(reasons(clean(root, "--older-than", "0s"), root, "keep")) == {
        "run/checkpoints/step-00000010",
        "run/checkpoints/step-00000040",
    }


def test_what_is_just_being_created_stays(tmp_path: pathlib.Path) -> None:
    (tmp_path / ".tmp-export-0a1b2c3d").mkdir()
    answer = clean(tmp_path, "--older-than", "0s")
    assert reasons(answer, tmp_path, "keep") == {".tmp-export-0a1b2c3d": "written to in the last minute"}


def test_what_was_used_since_it_was_listed_stays(root: pathlib.Path) -> None:
    make_old(root, time.time(), days=30)
    (place,) = find_places([root / "photos.features"], note=print)
    listed = [Decision(entry=entry, action="remove", reason="old") for entry in place.find()]
    features = FeatureStore(root / "photos.features", budget_bytes=2**30).open("train", {"of": "photos"})
    (kept,) = _remove_from(place, listed)
    assert (kept.action, kept.reason) == ("keep", "in use by a running process")
    del features
    (kept,) = _remove_from(place, listed)
    assert (kept.action, kept.reason) == ("keep", "used since it was found")
    (listed_again,) = place.find()
    (removed,) = _remove_from(place, [Decision(entry=listed_again, action="remove", reason="old")])
    assert removed.action == "removed" and not listed_again.path.exists()
    (gone,) = _remove_from(place, [Decision(entry=listed_again, action="remove", reason="old")])
    assert gone.reason == "another command has removed it"


def test_a_run_that_begins_to_train_after_it_was_listed_stays(root: pathlib.Path) -> None:
    make_old(root, time.time(), days=30)
    (place,) = find_places([root / "run"], note=print)
    listed = [Decision(entry=entry, action="remove", reason="old") for entry in place.find()]
    with claim.hold_run(RunDir(root / "run"), "0" * 64, note=print):
        far = {"TRAINER_COMMAND": "another"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(claim, "own_command", lambda: far["TRAINER_COMMAND"])
            kept = _remove_from(place, listed)
    assert {decision.action for decision in kept} == {"keep"}
    assert all(decision.reason.startswith(f"being trained by process {os.getpid()} ") for decision in kept)


def test_what_cannot_be_removed_is_named_with_status_1(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: pathlib.Path) -> NoReturn:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    make_old(root, time.time(), days=30)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(StorageError, match=r"could not be removed \(Permission denied\); make sure") as raised:
        clean(root / "photos.cache", "--yes")
    assert raised.value.exit_status == 1
    monkeypatch.undo()
    # It was renamed before, so that no reader finds a half of it, and is found again.
    make_old(root, time.time(), days=30)
    assert [entry["action"] for entry in clean(root / "photos.cache", "--yes")["entries"]] == ["removed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist; give trainer clean runs"),
        ([".", "--older-than", "soon"], "--older-than 'soon' is no age; give a number and s, m, h, d or w"),
        ([".", "--keep", "-1GB"], "--keep '-1GB' is no size; give a number and a unit"),
    ],
)
def test_wrong_usage_is_a_sentence_with_status_2(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        clean(*arguments)
    assert raised.value.exit_status == 2


def test_people_get_a_table_and_the_command_that_removes(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old(root, time.time(), days=30)
    monkeypatch.setenv("COLUMNS", "160")
    listed = CliRunner().invoke(app, ["clean", str(root), "--older-than", "2w"])
    assert listed.exit_code == 0 and "the newest whole checkpoint" in listed.stdout
    assert f"next:    trainer clean {root} --older-than 2w --yes" in listed.stdout
    removed = CliRunner().invoke(app, ["clean", str(root), "--older-than", "2w", "--yes"])
    assert "in 11 entries" in removed.stdout and removed.exit_code == 0
    monkeypatch.chdir(root)
    nothing = CliRunner().invoke(app, ["clean"])
    assert nothing.stdout.endswith("nothing to remove\n")


def test_a_writer_marks_what_it_writes_until_it_has_its_name(tmp_path: pathlib.Path) -> None:
    with atomic.new_directory(tmp_path / "export") as directory:
        assert in_use.find_use(directory) == "used"
    assert in_use.find_use(tmp_path / "export") == "free"
    with atomic.new_file(tmp_path / "plan.json"):
        (temporary,) = tmp_path.glob(".tmp-plan.json-*")
        assert in_use.find_use(temporary) == "used"
    with in_use.scratch_folder() as scratch:
        assert in_use.find_use(scratch) == "used"
    assert not scratch.exists()


def test_a_reader_that_comes_during_a_removal_finds_nothing(root: pathlib.Path) -> None:
    (header,) = root.glob("photos.features/*/header.json")
    descriptor = in_use.share(header)
    assert in_use.find_use(header) == "used"
    os.close(descriptor)
    with in_use.hold_alone(header) as use:
        assert use == "free"
        shutil.rmtree(header.parent)
    with pytest.raises(FileNotFoundError):
        in_use.share(header)
    assert FeatureStore(root / "photos.features", budget_bytes=2**30).open("train", {"of": "photos"}) is None
