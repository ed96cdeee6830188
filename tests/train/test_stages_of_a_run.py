"""Stages: on what a run trains in which step, and when it ends early; as arithmetic."""

import itertools
import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.config import load_config
from trainer.config.training import TrainConfig, Unfreezing
from trainer.data.sampling.epochs import Epochs
from trainer.errors import ConfigError
from trainer.plan.stages import Stage, plan_stages
from trainer.training.early_stopping import has_lost_patience


def stages(train: TrainConfig, sizes_px: list[int] | None = None, num_steps: int = 100) -> list[Stage]:
    return plan_stages(
        sizes_px,
        train,
        trainable="head",
        epochs=Epochs(num_examples=num_steps, batch_size=10, num_train_steps=num_steps, num_positions=10 * num_steps),
        image_size_px=64,
        min_image_size_px=32,
        backbone="a backbone",
    )


def unfreeze(*parts: tuple[float, str]) -> TrainConfig:
    return TrainConfig(epochs=10.0, unfreeze=[Unfreezing(epoch=epoch, trainable=what) for epoch, what in parts])


def test_unfreezing_and_resizing_go_on_side_by_side() -> None:
    found = stages(unfreeze((2.0, "top:2"), (7.0, "all")), [32, 64])
    assert found == [(0, 20, 32, "head"), (20, 50, 32, "top:2"), (50, 70, 64, "top:2"), (70, 100, 64, "all")]


@given(
    epochs=st.lists(st.floats(0.1, 9.9), max_size=4, unique=True).map(sorted),
    num_sizes=st.integers(1, 4),
    num_steps=st.integers(5, 1000),
)
def test_the_stages_are_all_of_the_run_and_nothing_twice(epochs: list[float], num_sizes: int, num_steps: int) -> None:
    try:
        found = stages(unfreeze(*((e, f"top:{i + 1}") for i, e in enumerate(epochs))), [61, 62, 63, 64][-num_sizes:],
                       num_steps)  # fmt: skip
    except ConfigError:
        return
    assert (found[0].start_step, found[-1].stop_step) == (0, num_steps)
    assert all(a.stop_step == b.start_step for a, b in itertools.pairwise(found))
    assert all(stage.start_step < stage.stop_step for stage in found)
    assert len({stage.trainable for stage in found}) == len(epochs) + 1
    assert len({stage.image_size_px for stage in found}) == num_sizes


@pytest.mark.parametrize(
    ("train", "answer"),
    [
        (unfreeze((5.0, "top:1"), (3.0, "all")), "must rise and lie within the run of 10 epochs"),
        (unfreeze((10.0, "all")), "must rise and lie within"),
        (unfreeze((0.01, "top:1"), (0.02, "all")), "only 100 steps"),
    ],
)
def test_epochs_that_make_no_sense_are_refused(train: TrainConfig, answer: str) -> None:
    with pytest.raises(ConfigError, match=answer):
        stages(train)


@pytest.mark.parametrize("value", ["tops:3", "top:0", "top:-1", "match:", "match:(", "top:x%"])
def test_what_is_not_of_the_grammar_is_refused_with_it(value: str) -> None:
    with pytest.raises(ConfigError, match=r"model.trainable .* should .*"):
        load_config(overrides=[f"model.trainable='{value}'"])


@given(values=st.lists(st.integers(0, 5), min_size=1, max_size=12), patience=st.integers(1, 4))
def test_patience_is_lost_where_counting_says_so(
    values: list[int], patience: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    write(log, [float(value) for value in values])
    best, num_since = -1, 0
    for value in values:
        best, num_since = (value, 0) if value > best else (best, num_since + 1)
    assert has_lost_patience(log, "accuracy", patience=patience, step=len(values)) == (num_since >= patience)


def test_of_losses_the_lower_is_better_and_later_lines_do_not_count(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "metrics.jsonl"
    write(log, [3.0, 2.0, 2.5, 2.6, 1.0])
    assert has_lost_patience(log, "loss", patience=2, step=4)
    assert not has_lost_patience(log, "loss", patience=2, step=5)
    assert not has_lost_patience(log, "loss", patience=2, step=3)


def write(log: pathlib.Path, values: list[float]) -> None:
    lines = [
        {"step": step, "split": split, "loss": value, "accuracy": value}
        for step, value in enumerate(values, start=1)
        for split in ("train", "validation")
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
