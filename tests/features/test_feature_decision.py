"""Features are kept only where that changes no result, with the reason in the plan; asking for more is an error."""

import pathlib

import pytest
from feature_runs import make_config

from trainer.data.dataset.storage import parse_path
from trainer.distribute.topology import Topology
from trainer.errors import ConfigError
from trainer.features.decision import FeaturePlan
from trainer.plan.plan import make_plan

ONE_CPU = Topology(strategy="single", device="cpu", num_local_replicas=1)
ONE_GPU = Topology(strategy="single", device="gpu", num_local_replicas=1)


def plan_of(dataset_dir: pathlib.Path, *settings: str, topology: Topology = ONE_CPU) -> FeaturePlan:
    return make_plan(make_config(dataset_dir, *settings), parse_path(str(dataset_dir)), topology, []).features


WRONG = [
    (["augment.preset=light"], "changed at random at each visit"),
    (["augment.flip=true"], "changed at random at each visit"),
    (["augment.mixup_alpha=0.2"], "mix the pixels"),
    (["augment.cutmix_alpha=1.0"], "mix the pixels"),
    (["augment.progressive_sizes_px=[32, 64]", "model.image_size_px=64"], "progressive resizing"),
    (["model.trainable=all"], "every layer is trained"),
    (["distribute.min_replicas=1", "distribute.strategy=horovod"], "elastic job"),
    (["features.budget_gib=1e-6"], "over the features.budget_gib"),
]


@pytest.mark.parametrize(("settings", "reason"), WRONG, ids=[" ".join(settings) for settings, _ in WRONG])
def test_what_makes_features_wrong_turns_them_off_with_the_reason_and_asking_for_them_into_an_error(
    few_digits: pathlib.Path, settings: list[str], reason: str
) -> None:
    plan = plan_of(few_digits, *settings)
    assert not plan.is_on and reason in plan.reason
    with pytest.raises(ConfigError, match=r"(features\.cache is on|features are asked for), but") as error:
        plan_of(few_digits, *settings, "features.cache=on")
    assert reason in str(error.value)


def test_a_frozen_backbone_and_unchanged_images_turn_features_on(few_digits: pathlib.Path) -> None:
    plan = plan_of(few_digits)
    assert plan.is_on and plan.layer == "pool" and plan.shape == [32]
    assert plan.num_bytes == (120 + 20) * 32 * 4
    assert plan.dir == f"{few_digits}.features"


@pytest.mark.parametrize(
    "settings", [["data.sampling=class_balanced"], ["train.accumulate_steps=2"], ["train.ema_decay=0.99"]]
)
def test_what_does_not_touch_the_images_leaves_features_on(few_digits: pathlib.Path, settings: list[str]) -> None:
    assert plan_of(few_digits, *settings).is_on


def test_features_that_save_nothing_are_kept_only_when_asked_for(few_digits: pathlib.Path) -> None:
    assert "no training image is read twice" in plan_of(few_digits, "train.epochs=1").reason
    assert plan_of(few_digits, "train.epochs=1", "features.cache=on").is_on
    assert plan_of(few_digits, "features.cache=off").reason == "features.cache is off"


@pytest.mark.parametrize(
    ("settings", "topology", "runtimes"),
    [
        ([], ONE_CPU, ["onnxruntime", "litert", "tensorflow"]),
        (["distribute.device=gpu", "distribute.precision=float32"], ONE_GPU, ["tensorflow"]),
        (["distribute.precision=mixed_bfloat16"], ONE_CPU, ["tensorflow"]),
        (["features.runtime=litert"], ONE_CPU, ["litert"]),
    ],
)
def test_the_runtime_follows_from_the_device_and_the_precision(
    few_digits: pathlib.Path, settings: list[str], topology: Topology, runtimes: list[str]
) -> None:
    plan = plan_of(few_digits, *settings, topology=topology)
    assert [plan.runtime, *plan.fallbacks] == runtimes


def test_features_take_the_place_of_decoded_images_unless_these_are_asked_for(few_digits: pathlib.Path) -> None:
    def cache_of(*settings: str) -> str:
        config = make_config(few_digits, *settings)
        return make_plan(config, parse_path(str(few_digits)), ONE_CPU, []).data.train_cache

    assert cache_of() == "off"
    assert cache_of("data.cache=memory") == "memory"
    assert cache_of("features.cache=off") != "off"


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        (["features.views=2"], "all views would be the same"),
        (["features.views=2", "augment.preset=light", "features.cache=off"], "no view is kept"),
        (["features.views=2", "augment.preset=strong"], "mix the pixels"),
        (["features.views=2", "augment.preset=light", "model.trainable=all"], "features.views is 2, but every layer"),
    ],
)
def test_views_that_cannot_be_kept_are_an_error(few_digits: pathlib.Path, settings: list[str], answer: str) -> None:
    with pytest.raises(ConfigError, match=answer):
        plan_of(few_digits, *settings)


def test_views_are_counted_in_the_bytes(few_digits: pathlib.Path) -> None:
    plan = plan_of(few_digits, "features.views=2", "augment.preset=medium")
    assert plan.num_views == 2
    assert plan.num_bytes == (2 * 120 + 20) * 32 * 4
