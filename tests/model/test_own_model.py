"""A saved model of the user's own as a backbone: its head cut off, its preprocessing kept, its code refused."""

import json
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from trainer.errors import ModelError
from trainer.model.backbones.blocks import blocks_of
from trainer.model.backbones.headless import without_head
from trainer.model.backbones.registry import find_backbone
from trainer.model.classifier import backbone_of, build_classifier
from trainer.model.weights import load_pretrained

layers = keras.layers


def _features(x: Any) -> Any:
    x = layers.Conv2D(6, 3, name="first")(x)
    x = layers.BatchNormalization(name="norm")(x)
    return layers.Conv2D(5, 3, name="last")(x)


def _model(head: Callable[[Any], Any], shape: Any = (24, 24, 3)) -> Any:
    pixels = keras.Input(shape)
    x = layers.RandomFlip(name="flip")(pixels)
    x = layers.Rescaling(1 / 255, name="own_scaling")(x)
    return keras.Model(pixels, head(_features(x)), name="mine")


def _dense_head(x: Any) -> Any:
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(9, activation="relu")(x)
    return layers.Dense(3, activation="softmax")(layers.Dropout(0.5)(x))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("own") / "mine.keras"
    model = _model(_dense_head)
    rng = np.random.default_rng(3)
    model.set_weights([rng.uniform(0.1, 1, w.shape) for w in model.get_weights()])
    model.save(path)
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, [2, 24, 24, 3]).astype(np.float32)


def _classifier(path: pathlib.Path, pixels: str = "0-255", weights: str = "bundled", **kwargs: Any) -> Any:
    size = {"image_size_px": 24, **kwargs}
    model = build_classifier(backbone=str(path), num_classes=4, pixels=pixels, **size)
    load_pretrained(model, str(path), weights, pixels=pixels)
    return model


def test_the_head_is_cut_off_and_the_rest_answers_as_before(saved: pathlib.Path, images: np.ndarray) -> None:
    network = backbone_of(_classifier(saved))
    source = keras.models.load_model(saved)
    up_to_last = keras.Model(source.input, source.get_layer("last").output)
    np.testing.assert_allclose(network(images, training=False), up_to_last(images, training=False), rtol=1e-5)
    assert "own_scaling" in [layer.name for layer in network.layers]


def test_random_changes_of_its_own_are_left_out(saved: pathlib.Path, images: np.ndarray) -> None:
    classifier = _classifier(saved, trainable="all")
    np.testing.assert_array_equal(classifier(images, training=True), classifier(images, training=True))


def test_weights_of_none_are_not_those_of_the_file(saved: pathlib.Path) -> None:
    random, loaded = (backbone_of(_classifier(saved, weights=weights)) for weights in ("none", "bundled"))
    assert not np.allclose(random.get_layer("last").get_weights()[0], loaded.get_layer("last").get_weights()[0])


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ("0-255", lambda x: x),
        ("0-1", lambda x: x / 255),
        ("-1-1", lambda x: keras.applications.imagenet_utils.preprocess_input(x.copy(), mode="tf")),
        ("caffe", lambda x: keras.applications.imagenet_utils.preprocess_input(x.copy(), mode="caffe")),
        ("torch", lambda x: keras.applications.imagenet_utils.preprocess_input(x.copy(), mode="torch")),
    ],
)
def test_pixels_are_scaled_as_the_setting_says(
    pixels: str, expected: Callable[[Any], Any], saved: pathlib.Path, images: np.ndarray
) -> None:
    scale = _classifier(saved, pixels).get_layer("scale_pixels")
    np.testing.assert_allclose(scale(images), expected(images), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("pixels", [None, "bgr"])
def test_without_a_word_on_its_pixels_it_is_refused(pixels: str | None, saved: pathlib.Path) -> None:
    with pytest.raises(ModelError, match=r"set model\.pixels to one of 0-255, 0-1, -1-1, caffe, torch"):
        find_backbone(str(saved), pixels)


def test_pixels_are_not_for_backbones_that_are_known() -> None:
    with pytest.raises(ModelError, match=r"leave model\.pixels out"):
        find_backbone("resnet50", "caffe")


def test_precision_is_that_of_the_run(saved: pathlib.Path) -> None:
    network = backbone_of(_classifier(saved, dtype_policy="mixed_bfloat16"))
    assert network.get_layer("last").compute_dtype == "bfloat16"
    assert network.get_layer("last").variable_dtype == "float32"


def test_it_takes_images_of_other_sizes_where_its_layers_do(saved: pathlib.Path) -> None:
    assert find_backbone(str(saved), "0-255").image_size_px == 24
    assert backbone_of(_classifier(saved, image_size_px=40)).output_shape == (None, 36, 36, 5)


HEADS: dict[str, Callable[[Any], Any]] = {
    "none": lambda x: x,
    "pooled": lambda x: layers.GlobalMaxPooling2D()(x),
    "flatten": lambda x: layers.Dense(2)(layers.Flatten()(x)),
    "convolutional": lambda x: layers.Flatten()(layers.Conv2D(3, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x))),
    "deep": _dense_head,
}


@pytest.mark.parametrize("head", list(HEADS))
def test_every_kind_of_head_is_found(head: str) -> None:
    network = without_head(_model(HEADS[head]), origin="mine")
    assert network.layers[-1].name == "last"
    assert network.output_shape == (None, 20, 20, 5)


def test_a_network_inside_the_model_is_found_with_its_own_head() -> None:
    inside = keras.Input((24, 24, 3))
    nested = keras.Model(inside, layers.GlobalAveragePooling2D()(_features(inside)), name="nested")
    around = [keras.Input((24, 24, 3)), layers.Rescaling(1 / 255), nested, layers.Dense(2)]
    network = without_head(keras.Sequential(around), origin="mine")
    assert network.output_shape == (None, 20, 20, 5)
    assert [layer.name for layer in blocks_of(network)[-1]] == ["last"]


def test_a_network_that_is_all_there_is_keeps_the_names_of_its_layers() -> None:
    inside = keras.Input((24, 24, 3))
    nested = keras.Model(inside, _features(inside), name="nested")
    around = keras.Sequential([keras.Input((24, 24, 3)), nested, layers.GlobalAveragePooling2D(), layers.Dense(2)])
    network = without_head(around, origin="mine")
    assert [layer.name for layer in network.layers][1:] == ["first", "norm", "last"]
    assert network(np.zeros([1, 24, 24, 3])).shape == (1, 20, 20, 5)


def test_a_transformer_is_cut_at_its_pooled_sequence() -> None:
    pixels = keras.Input((24, 24, 3))
    x = layers.Reshape((9, 4))(layers.Conv2D(4, 8, strides=8)(pixels))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)])
    x = layers.LayerNormalization()(x)
    x = layers.GlobalAveragePooling1D(name="tokens_mean")(x)
    network = without_head(keras.Model(pixels, layers.Dense(3)(layers.Dense(8)(x))), origin="mine")
    assert network.output_shape == (None, 1, 1, 4)
    assert network.layers[-2].name == "tokens_mean"


def test_models_that_are_no_backbones_are_refused() -> None:
    pixels = keras.Input((24, 24, 3))
    table = keras.Input((7,))
    flat = layers.Dense(3)(layers.Flatten()(layers.Rescaling(1 / 255)(pixels)))
    for model, message in [
        (keras.Model(pixels, flat), "no features"),
        (keras.Model(table, layers.Dense(3)(table)), "not RGB images"),
        (keras.Model([pixels, table], layers.Dense(3)(table)), "2 inputs and 1 outputs"),
    ]:
        with pytest.raises(ModelError, match=message):
            without_head(model, origin="mine")


def _edited(saved: pathlib.Path, tmp_path: pathlib.Path, change: Callable[[dict[str, Any]], None]) -> pathlib.Path:
    """A copy of `saved` whose first layer with weights is another one in the configuration."""
    path = tmp_path / "edited.keras"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Rescaling"))
                content = json.dumps(config).encode()
            new.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "entry",
    [
        {"module": "keras.layers", "class_name": "Lambda"},
        {"module": "keras.layers", "class_name": "TFSMLayer"},
        {"module": "os", "class_name": "system"},
        {"module": "keras.utils", "class_name": "get_file"},
        {"module": "builtins", "class_name": "function"},
        {"module": None, "class_name": "Scaling", "registered_name": "theirs>Scaling"},
    ],
    ids=lambda entry: str(entry["class_name"]),
)
def test_code_in_a_file_is_refused_before_it_is_opened(
    entry: dict[str, Any], saved: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras.models, "load_model", lambda *a, **k: pytest.fail("the file was opened"))
    path = _edited(saved, tmp_path, lambda layer: layer.update(entry))
    with pytest.raises(ModelError, match=r"layers of Keras in its place; or, if you know its author, .* --trust"):
        find_backbone(str(path), "0-1")


def test_a_file_that_is_missing_or_damaged_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        find_backbone(str(tmp_path / "none.keras"), "0-1")
    (tmp_path / "broken.keras").write_bytes(b"PK")
    with pytest.raises(ModelError, match="is not a readable model"):
        find_backbone(str(tmp_path / "broken.keras"), "0-1")


def test_randomness_that_would_differ_from_replica_to_replica_is_refused(tmp_path: pathlib.Path) -> None:
    _model(lambda x: layers.Conv2D(4, 1)(layers.GaussianNoise(0.1, name="noise")(x))).save(tmp_path / "noisy.keras")
    with pytest.raises(ModelError, match="noise, a GaussianNoise"):
        _classifier(tmp_path / "noisy.keras")
