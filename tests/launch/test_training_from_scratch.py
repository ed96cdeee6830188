"""Batch statistics of networks that start from random weights, and of those that do not."""

import pathlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import safetensors.numpy

from trainer.config.config import load_config
from trainer.distribute.mirrored import make_engine
from trainer.distribute.topology import Topology
from trainer.evaluation.evaluate_run import evaluate_run
from trainer.launch.plan_run import plan_run
from trainer.launch.start_run import start_run
from trainer.model.backbones import registry
from trainer.model.backbones.backbone import Backbone
from trainer.model.backbones.scaling import PixelScaling
from trainer.run.checkpoint_store import find_model_file
from trainer.run.run_dir import RunDir

pytestmark = pytest.mark.slow

# As in MobileNet: these runs are far shorter than the thousand steps that its averages remember.
MOMENTUM = 0.999


def no_note(_: str) -> None: ...


def build_backbone(shape: tuple[int, int, int]) -> Any:
    """The variances behind its convolutions are small, as they are in deep networks."""
    x = images = keras.Input(shape)
    for num_filters in (12, 24):
        small = keras.initializers.RandomNormal(stddev=0.01)
        x = keras.layers.Conv2D(num_filters, 3, strides=2, use_bias=False, kernel_initializer=small)(x)
        x = keras.layers.BatchNormalization(momentum=MOMENTUM, name=f"norm{num_filters}")(x)
        x = keras.layers.ReLU()(x)
    return keras.Model(images, x)


@pytest.fixture(scope="module", autouse=True)
def slow_statistics() -> Iterator[None]:
    scaling = PixelScaling(scale=(1 / 255,) * 3)
    backbone = Backbone(name="slow_statistics", image_size_px=32, scaling=scaling, build=build_backbone)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._REGISTRY, backbone.name, backbone)
        yield


def train(run_dir: pathlib.Path, digits: pathlib.Path, *overrides: str) -> RunDir:
    settings = [f"data.path={digits}", "distribute.device=cpu", "model.backbone=slow_statistics"]
    settings += ["augment.preset=none", "train.global_batch_size=32", "optimizer.learning_rate=0.03"]
    planned = plan_run(load_config(overrides=[*settings, *overrides]), run_dir=run_dir, resume=True, note=no_note)
    start_run(planned, no_note)
    return planned.run


def moving_averages(run: RunDir) -> dict[str, np.ndarray]:
    weights = safetensors.numpy.load_file(find_model_file(run, which="last")[0])
    # Each name begins with the place of the variable in the network.
    return {name.partition(":")[2]: values for name, values in weights.items() if "/moving_" in name}


@pytest.fixture(scope="module")
def from_scratch(digits: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run_dir = tmp_path_factory.mktemp("runs") / "scratch"
    return train(run_dir, digits, "model.weights=none", "train.epochs=3")


def test_a_network_from_scratch_answers_as_it_was_trained_after_few_steps(from_scratch: RunDir) -> None:
    engine = make_engine(Topology(strategy="single", device="cpu", num_local_replicas=1))
    assert evaluate_run(from_scratch, "validation", engine, which="last").accuracy > 0.4


def test_statistics_of_pretrained_weights_go_on_from_what_they_are(
    from_scratch: RunDir, digits: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A hidden layer of the head is new all the same."""
    overrides = (f"model.weights={from_scratch.path}", "model.batch_norm=per_replica", "train.epochs=0.02")
    run = train(tmp_path / "tuned", digits, *overrides, "model.hidden_units=[16]", "model.hidden_batch_norm=true")
    before, after = moving_averages(from_scratch), moving_averages(run)
    for name, values in before.items():
        assert not np.array_equal(after[name], values)
        np.testing.assert_allclose(after[name], values, rtol=0.02, atol=0.02 * np.abs(values).max())
    (hidden,) = (values for name, values in after.items() if name not in before and name.endswith("variance"))
    # After one batch, what is left of the 1 that it starts from would be 0.99 of it.
    assert hidden.max() < 0.9 or hidden.min() > 1.1
