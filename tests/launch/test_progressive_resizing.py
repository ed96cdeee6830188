"""Progressive resizing: which step trains on which size, what is refused, and a resumed run in any stage."""

import itertools
import pathlib
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import final_weights_hash

from tests import small_backbone
from trainer.config.config import load_config
from trainer.data.dataset.manifest import Manifest
from trainer.distribute.mirrored import make_engine
from trainer.errors import ConfigError, ModelError
from trainer.launch.plan_run import PlannedRun, plan_run
from trainer.launch.start_run import start_run
from trainer.model.classifier import build_classifier
from trainer.plan.stages import divide_steps
from trainer.training.batches import staged_batches
from trainer.training.input import TrainInputs, make_training_stream

pytestmark = pytest.mark.slow

SIZES_PX = [32, 36, 44]
NUM_STEPS = 12
EFFICIENTNET = ("model.backbone=efficientnet_lite0", "model.pixels=null")


@given(num_steps=st.integers(1, 10_000), num_sizes=st.integers(1, 8))
def test_stages_are_equal_parts_of_the_whole_run(num_steps: int, num_sizes: int) -> None:
    bounds = divide_steps(num_steps, num_sizes)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, num_steps, num_sizes + 1)
    lengths = [stop - start for start, stop in itertools.pairwise(bounds)]
    assert max(lengths) - min(lengths) <= 1


def plan(digits: pathlib.Path, run_dir: pathlib.Path, *overrides: str, sizes: list[int] = SIZES_PX) -> PlannedRun:
    num_examples = Manifest.load(digits).splits["train"].num_examples
    settings = [
        f"data.path={digits}",
        "distribute.device=cpu",
        *small_backbone.SETTINGS,
        "model.image_size_px=44",
        "model.trainable=head",
        "train.global_batch_size=64",
        f"train.epochs={(NUM_STEPS - 0.5) * 64 / num_examples}",
        "augment.preset=strong",
        "checkpoint.every_steps=2",
        "checkpoint.keep=10",
        f"augment.progressive_sizes_px={sizes}",
    ]
    return plan_run(load_config(overrides=[*settings, *overrides]), run_dir=run_dir, resume=True, note=lambda _: None)


@pytest.mark.parametrize(
    ("sizes", "overrides", "answer"),
    [
        ([44, 32, 44], (), "does not rise"),
        ([32, 32, 44], (), "does not rise"),
        ([32, 36], (), "whose last size is not the model's 44 px.*model.image_size_px=36"),
        ([16, 44], EFFICIENTNET, "efficientnet_lite0 takes images of at least 32 px"),
        (list(range(32, 45)), (), "the run has 12 steps, fewer than sizes"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(
    digits: pathlib.Path, tmp_path: pathlib.Path, sizes: list[int], overrides: tuple[str, ...], answer: str
) -> None:
    with pytest.raises(ConfigError, match=answer):
        plan(digits, tmp_path, *overrides, sizes=sizes)


def test_without_sizes_there_is_one_stage_of_the_models_size(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    planned = plan(digits, tmp_path, "augment.progressive_sizes_px=null")
    assert planned.plan.schedule.stages == [(0, NUM_STEPS, 44, "head")]


@pytest.mark.parametrize("first_step", [0, 3, 4, 11])
def test_each_step_gets_its_batch_at_the_size_of_its_stage(
    digits: pathlib.Path, tmp_path: pathlib.Path, first_step: int
) -> None:
    planned = plan(digits, tmp_path)
    stream = make_training_stream(planned.plan, planned.config, planned.topology, TrainInputs())
    batches = list(staged_batches(planned.plan.schedule.stages, make_engine(planned.topology), stream, first_step))
    assert [batch.images.shape[1] for batch in batches] == [SIZES_PX[step // 4] for step in range(first_step, 12)]
    assert [int(batch.positions[0]) for batch in batches] == [step * 64 for step in range(first_step, 12)]


def test_a_run_resumed_in_any_stage_ends_with_the_same_weights(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    whole = plan(digits, tmp_path / "whole")
    start_run(whole, lambda _: None)
    for first_step in (2, 4, 10):
        run_dir = tmp_path / f"from {first_step}"
        shutil.copytree(whole.run.path, run_dir)
        for checkpoint in (run_dir / "checkpoints").glob("step-*"):
            if int(checkpoint.name.removeprefix("step-")) > first_step:
                shutil.rmtree(checkpoint)
        resumed = plan(digits, run_dir)
        assert resumed.first_step == first_step
        start_run(resumed, lambda _: None)
        assert final_weights_hash(run_dir) == final_weights_hash(whole.run.path)


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "convnext_tiny"])  # a plain network, and one of several models
def test_a_model_for_several_sizes_is_the_same_one_at_its_own_size(backbone: str) -> None:
    static = build_classifier(backbone=backbone, num_classes=3, image_size_px=50)
    dynamic = build_classifier(backbone=backbone, num_classes=3, image_size_px=50, other_sizes_px=[36])
    assert [v.shape for v in static.variables] == [v.shape for v in dynamic.variables]
    dynamic.set_weights(static.get_weights())
    images = np.random.default_rng(0).uniform(0, 255, [2, 50, 50, 3]).astype(np.float32)
    # 50 px are 25 after the first of the strides: paddings depend on it.
    np.testing.assert_array_equal(dynamic(images), static(images))
    assert dynamic(images[:, :36, :36]).shape == (2, 3)


def test_a_backbone_that_cannot_take_a_size_is_named() -> None:
    with pytest.raises(ModelError, match="nasnet_mobile, padded for its full size, cannot take images of 76 px"):
        build_classifier(backbone="nasnet_mobile", num_classes=3, image_size_px=96, other_sizes_px=[76])
