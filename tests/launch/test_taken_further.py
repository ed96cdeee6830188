"""A run goes on by its directory alone, on other workers, and to more epochs than it was planned for."""

import json
import pathlib
import shlex
import shutil

import numpy as np
import pytest
from launching import final_weights_hash, metrics

from tests import small_backbone
from tests.event_files import scalars
from trainer.cli.app import main
from trainer.config.config import Config, load_config
from trainer.errors import ConfigError, RunError, UsageError
from trainer.launch.plan_run import plan_run
from trainer.launch.settings_of_run import settings_of_run, to_arguments
from trainer.launch.start_run import start_run
from trainer.plan.common_steps import count_common_steps
from trainer.run.run_dir import RunDir

pytestmark = pytest.mark.slow

# All that a step may keep, and a warm-up. An epoch of the digits ends within a batch, and the last batch is filled up.
SETTINGS = (
    "distribute.device=cpu",
    *small_backbone.SETTINGS,
    "model.image_size_px=32",
    "model.trainable=head",
    "model.dropout=0.2",
    "train.ema_decay=0.9",
    "optimizer.learning_rate=0.01",
    "optimizer.schedule=constant",
    "optimizer.warmup_steps=3",
    "checkpoint.every_steps=5",
    "log.every_steps=4",
    # Whether it pays depends on the number of epochs, and kept features differ from computed ones by rounding.
    "features.cache=off",
)


def make_config(digits: pathlib.Path, *more: str) -> Config:
    return load_config(overrides=[*SETTINGS, f"data.path={digits}", *more])


def train(config: Config, run_dir: pathlib.Path) -> list[str]:
    """Train in this process; return what was told."""
    told: list[str] = []
    start_run(plan_run(config, run_dir=run_dir, resume=True, note=told.append), told.append)
    return told


@pytest.fixture(scope="module")
def short(digits: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run of one epoch."""
    path = tmp_path_factory.mktemp("runs") / "short"
    train(make_config(digits, "train.epochs=1"), path)
    return path


@pytest.fixture(scope="module")
def long(digits: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of two epochs."""
    path = tmp_path_factory.mktemp("runs") / "long"
    train(make_config(digits, "train.epochs=2"), path)
    return path


def exit_status(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> int:
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def copy(run: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(run, to))


def remove_last_checkpoint(run: pathlib.Path) -> None:
    shutil.rmtree(max((run / "checkpoints").glob("step-*")))


def validations(run: pathlib.Path) -> list[tuple[float, str, float]]:
    return [(m["step"], str(m["split"]), m["loss"]) for m in metrics(run) if m["split"] != "train"]


def test_a_finished_run_taken_further_ends_with_the_weights_of_the_longer_run(
    digits: pathlib.Path, short: pathlib.Path, long: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run, config = copy(short, tmp_path / "run"), make_config(digits, "train.epochs=2")
    assert RunDir(run).identity() != RunDir(long).identity()
    told = train(config, run)
    assert any("train.epochs is 2 now, and was 1; it goes on from the checkpoint of step" in line for line in told)
    assert final_weights_hash(run) == final_weights_hash(long) != final_weights_hash(short)
    assert RunDir(run).info().identity == RunDir(long).info().identity
    assert RunDir(run).config() == RunDir(long).config() == config
    assert validations(run) == validations(long)

    lines = [(m["step"], m["split"]) for m in metrics(run)]
    assert len(lines) == len(set(lines)) and set(lines) >= {(m["step"], m["split"]) for m in metrics(long)}
    for split in ("train", "validation", "validation_raw"):
        seen = scalars(run / "tensorboard" / split)
        assert seen["loss"] == [step for step, of in lines if of == split], "each step once, none left out"
        assert all(len(steps) == len(set(steps)) for steps in seen.values())


def test_what_cannot_go_on_is_answered_with_a_command_that_does(
    digits: pathlib.Path, short: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy(short, tmp_path / "my run")
    for earlier in sorted((run / "checkpoints").glob("step-*"))[:-1]:
        shutil.rmtree(earlier)
    with pytest.raises(RunError, match=r"for 0\.5 epochs more, start a new run from them: trainer launch") as refused:
        plan_run(make_config(digits, "train.epochs=1.5"), run_dir=run, resume=True, note=print)
    assert "is filled up where the shorter run ends" in str(refused.value)
    command = shlex.split(str(refused.value).partition("start a new run from them: ")[2])
    assert exit_status(monkeypatch, command) == 0
    new = RunDir(tmp_path / "my run-0.5-more")
    assert pathlib.Path(new.info().weights).is_relative_to(run) and new.info().head == "keep"
    assert new.config().train.epochs == 0.5
    first, before = (next(m for m in metrics(path) if m["split"] == "train") for path in (new.path, run))
    assert first["loss"] < before["loss"] - 0.2, "it starts from the weights, the last layer included"


def test_fewer_epochs_than_were_made_are_refused(digits: pathlib.Path, short: pathlib.Path) -> None:
    with pytest.raises(RunError, match=r"has made \d+ steps, and train.epochs=0.5 ends with step \d+; training is not"):
        plan_run(make_config(digits, "train.epochs=0.5"), run_dir=short, resume=True, note=print)


def test_epochs_and_another_setting_are_both_named(digits: pathlib.Path, short: pathlib.Path) -> None:
    config = make_config(digits, "train.epochs=2", "train.seed=5")
    with pytest.raises(RunError, match=r"its train\.epochs is 1\.0, and now 2\.0; its train\.seed is 0, and now 5"):
        plan_run(config, run_dir=short, resume=True, note=print)


@pytest.mark.parametrize(
    ("settings", "number", "difference"),
    [
        (["optimizer.schedule=constant"], 22, "filled up"),
        (["optimizer.schedule=constant", "optimizer.warmup_epochs=0.5", "optimizer.warmup_steps=0"], 22, "filled up"),
        (["optimizer.schedule=step", "optimizer.step_epochs=[0.5]"], 22, "filled up"),
        (["optimizer.schedule=constant", "data.last_batch=drop"], 22, ""),
        (["optimizer.schedule=cosine"], 4, "the learning rate of step 5 is 0.00"),
        (["optimizer.schedule=one_cycle", "optimizer.warmup_steps=0"], 1, "the learning rate of step 2 is"),
        (["optimizer.schedule=constant", "augment.progressive_sizes_px=[24,32]"], 11, "on images of 32 px"),
        (["optimizer.schedule=constant", "train.unfreeze=[{epoch: 0.5, trainable: all}]"], 22, "filled up"),
        (["optimizer.schedule=constant", "data.last_batch=drop", "train.patience=3"], 21, "train.patience counts"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_plans_are_compared_as_resolved_at_every_step(
    digits: pathlib.Path, tmp_path: pathlib.Path, settings: list[str], number: int, difference: str
) -> None:
    before, now = (make_config(digits, *settings, f"train.epochs={epochs}") for epochs in (1, 2))
    plan = plan_run(now, run_dir=tmp_path / "run", resume=True, note=print).plan
    assert plan.data.num_train_examples // 64 == 22
    found = count_common_steps(before, now, plan)
    assert (found.number, difference in found.difference) == (number, True), found


def test_resume_needs_the_run_alone_and_takes_nothing_from_where_it_is_started(
    short: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy(short, tmp_path / "run")
    remove_last_checkpoint(run)
    (tmp_path / "trainer.yaml").write_text("train: {seed: 7}\noptimizer: {name: sgd}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert exit_status(monkeypatch, ["trainer", "launch", "--resume", "run"]) == 0
    assert final_weights_hash(run) == final_weights_hash(short)
    assert exit_status(monkeypatch, ["trainer", "launch", "--resume=run", "--recipe=frozen"]) == 2


def test_a_run_goes_on_with_the_same_batches_on_other_replicas(short: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = copy(short, tmp_path / "run")
    remove_last_checkpoint(run)
    train(settings_of_run(RunDir(run), flags={"distribute": {"replicas": 2, "strategy": "mirrored"}}), run)
    losses = [np.array([loss for _, _, loss in validations(path)]) for path in (run, short)]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)


def test_workers_get_every_setting_wherever_they_start(
    short: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings_of_run(RunDir(short), ["log.every_steps=3"], flags={"distribute": {"hosts": "a:2,b:2"}})
    assert (config.log.every_steps, config.distribute.hosts, config.train.ema_decay) == (3, "a:2,b:2", 0.9)
    overrides = [argument.removeprefix("--set=") for argument in to_arguments(config)]
    elsewhere = tmp_path / "trainer.yaml"
    elsewhere.write_text("train: {seed: 7, ema_decay: null, patience: 3}\noptimizer: {name: sgd}\n", encoding="utf-8")
    assert load_config(elsewhere, overrides) == config


@pytest.mark.parametrize(
    ("of_run", "given", "left"),
    [
        ({"gpus": 8, "strategy": "mirrored"}, {"device": "cpu", "replicas": 2}, {"device": "cpu", "replicas": 2}),
        ({"hosts": "a:8", "strategy": "horovod"}, {"gpus": 4}, {"gpus": 4, "strategy": "horovod"}),
        ({"device": "cpu", "replicas": 4}, {"gpus": 1}, {"gpus": 1}),
        ({"device": "cpu", "replicas": 4}, {"device": "cpu"}, {"device": "cpu", "replicas": 4}),
        ({"device": "cpu", "replicas": 2, "strategy": "mirrored"}, {"replicas": 1}, {"device": "cpu", "replicas": 1}),
        ({"hosts": "a:1", "min_replicas": 1, "strategy": "horovod"}, {"strategy": "single"}, {"strategy": "single"}),
        ({"gpus": 8}, {}, {"gpus": 8}),
    ],
)
def test_workers_that_are_given_replace_those_of_the_run(
    short: pathlib.Path, tmp_path: pathlib.Path, of_run: dict[str, object], given: dict[str, object], left: object
) -> None:
    info = RunDir(short).info()
    RunDir(tmp_path).create(load_config(flags={"distribute": of_run}), info)
    config = settings_of_run(RunDir(tmp_path), flags={"distribute": given})
    changed = config.distribute.model_dump(exclude_defaults=True)
    assert changed == {**left, "precision": info.precision}  # type: ignore[dict-item]
    assert config.data.path == info.dataset_dir


def test_python_goes_on_by_the_directory_too(short: pathlib.Path, tmp_path: pathlib.Path) -> None:
    import trainer

    run = copy(short, tmp_path / "run")
    remove_last_checkpoint(run)
    with pytest.raises(UsageError, match="leave run_dir and recipe out"):
        trainer.train(resume=run, run_dir=run)
    with pytest.raises(ConfigError, match="did you mean"):
        trainer.train(resume=run, settings={"train.epoch": 2})
    assert trainer.train(resume=run, settings={"log.every_steps": 2}).path == run
    assert final_weights_hash(run) == final_weights_hash(short)
    assert json.loads((run / "plan.json").read_text())["num_train_steps"] == 23
