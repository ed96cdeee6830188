"""What a run's plan says of its input: the tail, the cache, and datasets that it does not train on."""

import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pixel_sets import encode, photographs, write_dataset

from trainer.config.config import load_config
from trainer.distribute.topology import Topology
from trainer.errors import ConfigError
from trainer.plan.plan import Plan, make_plan
from trainer.training.input import make_training_stream, make_validation_stream, open_caches

NUM_EXAMPLES = 10
SINGLE = Topology(strategy="single", device="cpu", num_local_replicas=1)
SMALL = ["model.image_size_px=16", "distribute.device=cpu"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    encoded = [encode(image) for image in photographs(NUM_EXAMPLES, width=40, height=30)]
    weights = [1.0 + i for i in range(NUM_EXAMPLES)]
    return write_dataset(tmp_path_factory.mktemp("datasets") / "photographs", encoded, weights=weights)


def plan_of(dataset: pathlib.Path, *overrides: str) -> Plan:
    return make_plan(load_config(overrides=[*SMALL, *overrides]), dataset, SINGLE, [])


@settings(deadline=None, max_examples=30)
@given(epochs=st.floats(0.3, 5), batch=st.integers(2, 30), drop=st.booleans())
def test_every_step_is_full_or_the_last_is_masked(dataset: pathlib.Path, epochs: float, batch: int, drop: bool) -> None:
    overrides = [
        f"train.epochs={epochs:.3f}",
        f"train.global_batch_size={batch}",
        f"data.last_batch={'drop' if drop else 'mask'}",
    ]
    num_positions = int(float(f"{epochs:.3f}") * NUM_EXAMPLES)
    if drop and num_positions < batch:
        with pytest.raises(ConfigError, match=r"data\.last_batch=mask"):
            plan_of(dataset, *overrides)
        return
    plan = plan_of(dataset, *overrides)
    steps = plan.schedule
    assert steps.num_positions == (num_positions // batch * batch if drop else num_positions)
    assert (steps.num_train_steps - 1) * batch < steps.num_positions <= steps.num_train_steps * batch


@pytest.mark.parametrize(("policy", "num_batches", "num_real"), [("mask", 4, 15), ("drop", 3, 12)])
def test_the_stream_of_a_plan_has_the_tail_that_it_says(
    dataset: pathlib.Path, policy: str, num_batches: int, num_real: int
) -> None:
    overrides = [*SMALL, "train.epochs=1.5", "train.global_batch_size=4", f"data.last_batch={policy}"]
    config = load_config(overrides=overrides)
    plan = make_plan(config, dataset, SINGLE, [])
    stream = make_training_stream(plan, config, SINGLE, open_caches(plan, config))
    weights = np.concatenate([b.weights for b in stream.dataset(0, plan.schedule.num_train_steps).as_numpy_iterator()])
    assert len(weights) == 4 * num_batches
    assert (weights > 0).sum() == num_real


def test_weights_of_examples_count_in_the_loss_or_in_the_order_but_not_in_both(dataset: pathlib.Path) -> None:
    seen = {}
    for sampling in ("uniform", "class_balanced", "weighted"):
        config = load_config(overrides=[*SMALL, "train.global_batch_size=10", f"data.sampling={sampling}"])
        plan = make_plan(config, dataset, SINGLE, [])
        stream = make_training_stream(plan, config, SINGLE, open_caches(plan, config))
        batches = list(stream.dataset(0, 10).as_numpy_iterator())
        seen[sampling] = (np.concatenate([b.weights for b in batches]), np.concatenate([b.labels for b in batches]))
    for sampling in ("uniform", "class_balanced"):
        assert set(seen[sampling][0]) == {1.0 + i for i in range(NUM_EXAMPLES)}
    assert set(seen["weighted"][0]) == {1.0}
    # Of 1 + 2 + ... + 10 = 55 the odd class has 2 + 4 + 6 + 8 + 10.
    assert np.mean(seen["weighted"][1]) == pytest.approx(30 / 55, abs=0.02)


def test_the_plan_says_where_decoded_images_are_kept_and_both_streams_use_them(dataset: pathlib.Path) -> None:
    config = load_config(overrides=SMALL)
    plan = make_plan(config, dataset, SINGLE, [])
    assert (plan.data.train_cache, plan.data.validation_cache, plan.data.cache_dir) == ("memory", "memory", None)
    assert plan.data.cache_num_bytes == 2 * NUM_EXAMPLES * 16 * 16 * 3
    caches = open_caches(plan, config)
    training = make_training_stream(plan, config, SINGLE, caches)
    validation = make_validation_stream(plan, config, SINGLE, caches)
    assert training.pixels is caches.train is not None
    assert validation.pixels is caches.validation is not None
    off = load_config(overrides=[*SMALL, "data.cache=off"])
    without = open_caches(make_plan(off, dataset, SINGLE, []), off)
    assert without.train is None and without.validation is None
