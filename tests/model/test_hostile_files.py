"""Saved models and weight files as attackers make them are refused: no code runs, no other file is read, in a second
and in little memory."""

import contextlib
import pathlib
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
from hostile_files import AS_BACKBONE, AS_WEIGHTS, CANARY, honest_model, keras_file

from trainer.errors import ModelError
from trainer.model.backbones import registry
from trainer.model.backbones.backbone import Backbone
from trainer.model.backbones.registry import find_backbone
from trainer.model.backbones.scaling import ZERO_TO_255
from trainer.model.classifier import build_classifier
from trainer.model.weights import load_pretrained
from trainer.system.trust import set_trust

Builder = Callable[[pathlib.Path], pathlib.Path]
# Far more than a refusal takes, and a fraction of what each bomb would.
_MAX_CPU_SECS, _MAX_MEMORY_BYTES = 2.0, 128 << 20


@contextlib.contextmanager
def refused(words: str, directory: pathlib.Path) -> Iterator[None]:
    """What the block asks for is refused in one sentence, at no cost and without effect."""
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ModelError, match=words) as caught:
        yield
    assert time.process_time() - start < _MAX_CPU_SECS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < _MAX_MEMORY_BYTES
    assert not (directory / CANARY).exists()
    message = str(caught.value)
    assert "hostile." in message or "w." in message, "the file is named"
    assert "\n" not in message and len(message) < 700
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("name", list(AS_BACKBONE))
def test_a_hostile_saved_model_is_refused(name: str, tmp_path: pathlib.Path) -> None:
    build, words = AS_BACKBONE[name]
    path = build(tmp_path)
    with refused(words, tmp_path):
        find_backbone(str(path), "0-255")


@pytest.fixture(scope="module")
def classifier() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        spec = Backbone(name="tiny", image_size_px=24, min_image_size_px=8, scaling=ZERO_TO_255, build=_build)
        patch.setitem(registry._REGISTRY, "tiny", spec)
        yield build_classifier(backbone="tiny", num_classes=3, image_size_px=24)


def _build(shape: Any) -> Any:
    pixels = keras.Input(shape)
    return keras.Model(pixels, keras.layers.Conv2D(4, 3, name="only")(pixels), name="tiny")


@pytest.mark.parametrize("name", list(AS_WEIGHTS))
def test_a_hostile_file_of_weights_is_refused(name: str, classifier: Any, tmp_path: pathlib.Path) -> None:
    build, words = AS_WEIGHTS[name]
    path = build(tmp_path)
    with refused(words, tmp_path):
        load_pretrained(classifier, "tiny", str(path))


def test_the_honest_file_that_these_are_made_from_is_taken(classifier: Any, tmp_path: pathlib.Path) -> None:
    path = keras_file(tmp_path)
    assert find_backbone(str(path), "0-255").image_size_px == 24
    report = load_pretrained(classifier, "tiny", str(path))
    assert report is not None and report.share == 1


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_what_a_model_was_compiled_with_is_never_built(tmp_path: pathlib.Path) -> None:
    model = honest_model()
    model.compile("adam", loss=lambda wanted, answer: keras.ops.mean(wanted - answer))
    model.save(tmp_path / "compiled.keras")
    assert find_backbone(str(tmp_path / "compiled.keras"), "0-255").image_size_px == 24


def test_layers_of_keras_in_every_place_are_taken(tmp_path: pathlib.Path) -> None:
    layers = keras.layers
    pixels = keras.Input((24, 24, 3))
    x = layers.Conv2D(4, 3, kernel_regularizer="l2", kernel_constraint=keras.constraints.MaxNorm(2))(pixels / 127.5 - 1)
    x = keras.ops.relu(keras.Sequential([layers.Conv2D(4, 1, activation=keras.activations.gelu), layers.ReLU(6)])(x))
    model = keras.Model(pixels, layers.Dense(2)(layers.GlobalAveragePooling2D()(x[:, 1:])))
    model.compile(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 9)), "mse", ["accuracy"])
    model.save(tmp_path / "every.keras")
    assert find_backbone(str(tmp_path / "every.keras"), "0-255").image_size_px == 24


@pytest.fixture
def trusting() -> Iterator[None]:
    set_trust(True)
    yield
    set_trust(False)


@pytest.mark.usefixtures("trusting")
@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_code_runs_where_the_user_says_so(tmp_path: pathlib.Path) -> None:
    pixels = keras.Input((24, 24, 3))
    halved = keras.layers.Lambda(lambda x: x / 2, output_shape=(24, 24, 3))(pixels)
    network = keras.Model(pixels, keras.layers.Conv2D(4, 3, name="only")(halved))
    network.save(tmp_path / "own.keras")
    classifier = build_classifier(backbone=str(tmp_path / "own.keras"), num_classes=3, image_size_px=24, pixels="0-255")
    load_pretrained(classifier, str(tmp_path / "own.keras"), "bundled", pixels="0-255")
    images = np.random.default_rng(0).uniform(0, 255, (2, 24, 24, 3)).astype(np.float32)
    expected = network(images).numpy().mean(axis=(1, 2))
    features = keras.Model(classifier.input, classifier.get_layer("head").input)(images).numpy()
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-4)
    # What one command was told says nothing to the next, though the file is the same.
    set_trust(False)
    with pytest.raises(ModelError, match=r"asks for Lambda of keras\.layers.*run its code with --trust"):
        find_backbone(str(tmp_path / "own.keras"), "0-255")
