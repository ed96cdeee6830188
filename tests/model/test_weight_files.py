"""Weights of any file of Keras, and of a run, into a backbone: by name, with a report, never by running the file."""

import pathlib
from collections.abc import Callable
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import safetensors.numpy

from trainer.errors import ModelError
from trainer.model.backbones import registry
from trainer.model.backbones.backbone import Backbone
from trainer.model.backbones.scaling import ZERO_TO_255
from trainer.model.classifier import backbone_of, build_classifier, named_arrays, saved_variables
from trainer.model.weights import load_pretrained


def _build(shape: Any, *, top_name: str = "top") -> Any:
    """A backbone with every difficulty: names that Keras makes up, layers in a layer, weights of two kinds."""
    pixels = keras.Input(shape)
    x = keras.layers.Conv2D(8, 3, name="stem")(pixels)
    x = keras.layers.BatchNormalization()(x)
    for _ in range(2):
        y = keras.layers.Conv2D(8, 3, padding="same")(x)
        y = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
        x = keras.layers.Add()([x, y])
    down = [keras.layers.LayerNormalization(), keras.layers.Conv2D(16, 2, strides=2)]
    x = keras.Sequential(down, name="down")(x)
    return keras.Model(pixels, keras.layers.SeparableConv2D(4, 1, name=top_name)(x), name="small")


def _with_head(backbone: Any) -> Any:
    """As people save it: the backbone's own layers, and a head on them."""
    x = keras.layers.GlobalAveragePooling2D()(backbone.output)
    return keras.Model(backbone.input, keras.layers.Dense(3, name="predictions")(x))


def _around(backbone: Any) -> Any:
    """As people save it too: the backbone as one layer among others."""
    around = [keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 255), backbone]
    return keras.Sequential([*around, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Backbone(name="small", image_size_px=32, scaling=ZERO_TO_255, build=_build)
    monkeypatch.setitem(registry._REGISTRY, "small", spec)


def _random(model: Any, seed: int = 5) -> Any:
    rng = np.random.default_rng(seed)
    for variable in saved_variables(model):
        variable.assign(rng.uniform(0.1, 1.0, variable.shape))
    return model


def _loaded(path: pathlib.Path, **kwargs: Any) -> tuple[Any, Any]:
    """The backbone of a classifier with the weights of `path`, and the report."""
    classifier = build_classifier(backbone="small", num_classes=3, image_size_px=32, **kwargs)
    report = load_pretrained(classifier, "small", str(path))
    return backbone_of(classifier), report


def _save_safetensors(model: Any, path: pathlib.Path) -> None:
    safetensors.numpy.save_file(named_arrays(saved_variables(model)), path)


SAVERS: dict[str, Callable[[Any, pathlib.Path], Any]] = {
    "w.weights.h5": lambda model, path: model.save_weights(path),
    "w.h5": lambda model, path: model.save(path),
    "w.keras": lambda model, path: model.save(path),
    "w.safetensors": _save_safetensors,
}


@pytest.mark.parametrize("wrap", [lambda backbone: backbone, _with_head, _around], ids=["alone", "head", "around"])
@pytest.mark.parametrize("file_name", list(SAVERS))
# Keras calls its own old format legacy.
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_every_kind_of_file_fits_however_the_backbone_was_saved(
    wrap: Callable[[Any], Any], file_name: str, tmp_path: pathlib.Path
) -> None:
    source = _random(_build((32, 32, 3)))
    SAVERS[file_name](wrap(source), tmp_path / file_name)
    network, report = _loaded(tmp_path / file_name)
    for mine, theirs in zip(network.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert report.num_parameters_loaded == report.num_parameters == source.count_params()
    assert len(report.loaded) == len(source.weights)
    assert report.missing == report.other_shape == []
    assert len(report.left_over) == (0 if wrap(source) is source else 2)


def test_layers_stand_in_for_others_under_the_same_name(tmp_path: pathlib.Path) -> None:
    source = _random(_build((32, 32, 3)))
    source.save_weights(tmp_path / "w.weights.h5")
    network, _ = _loaded(tmp_path / "w.weights.h5", batch_norm="synchronized", trainable="head")
    np.testing.assert_array_equal(network.get_weights()[3], source.get_weights()[3])


def test_a_file_of_keras_3_without_names_fits_by_the_order_of_the_layers(tmp_path: pathlib.Path) -> None:
    source = _random(_build((32, 32, 3)))
    path = tmp_path / "w.weights.h5"
    _around(source).save_weights(path)
    with h5py.File(path, "a") as file:
        file.visititems(lambda _, item: item.attrs.pop("name") if "name" in item.attrs else None)
    network, report = _loaded(path)
    assert report.share == 1
    for mine, theirs in zip(network.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_names_of_the_first_keras_are_understood(tmp_path: pathlib.Path) -> None:
    source = _random(_build((32, 32, 3)))
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        for layer in source.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}_{letter}:0" for letter in "zyxw"[: len(layer.weights)]]
            group.attrs["weight_names"] = [name.encode() for name in names]
            # In the file they lie by the alphabet, which is not their order.
            for name, array in zip(names, layer.get_weights(), strict=True):
                group[name] = array
        file.attrs["layer_names"] = [layer.name.encode() for layer in source.layers]
    # Four arrays of a layer in a layer have no name that tells them apart.
    network, report = _loaded_except_down(path)
    np.testing.assert_array_equal(network.get_layer("top").get_weights()[1], source.get_layer("top").get_weights()[1])
    assert report.missing and all(name.startswith("down/") for name in report.missing)


def _loaded_except_down(path: pathlib.Path) -> tuple[Any, Any]:
    from trainer.model import match_weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(match_weights, "MIN_FIT", 0.5)
        return _loaded(path)


def test_what_does_not_fit_is_named_and_the_rest_is_loaded(tmp_path: pathlib.Path) -> None:
    source = _random(_build((32, 32, 3), top_name="summit"))
    path = tmp_path / "w.weights.h5"
    source.save_weights(path)
    network, report = _loaded(path)
    assert {name.split("/")[0] for name in report.missing} == {"top"}
    assert {name.split("/")[0] for name in report.left_over} == {"summit"}
    assert 0.9 <= report.share < 1
    np.testing.assert_array_equal(network.get_layer("stem").get_weights()[0], source.get_weights()[0])
    assert "missing (top/" in report.summary() and "left over (summit/" in report.summary()


def test_an_array_of_another_shape_is_left_alone_and_named(tmp_path: pathlib.Path) -> None:
    source = _random(_build((32, 32, 3)))
    arrays = named_arrays(saved_variables(source))
    (name,) = (name for name in arrays if name.endswith("top/bias"))
    arrays[name] = np.zeros(7, np.float32)
    safetensors.numpy.save_file(arrays, tmp_path / "w.safetensors")
    network, report = _loaded(tmp_path / "w.safetensors")
    assert report.other_shape == ["top/bias [7], not [4]"]
    assert report.missing == []
    assert network.get_layer("top").get_weights()[2].shape == (4,)


def test_a_file_of_which_little_fits_is_refused_and_changes_nothing(tmp_path: pathlib.Path) -> None:
    pixels = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, name="stem")(pixels)
    other = _random(keras.Model(pixels, keras.layers.Conv2D(64, 5, name="elsewhere")(x)))
    other.save_weights(tmp_path / "w.weights.h5")
    classifier = build_classifier(backbone="small", num_classes=3, image_size_px=32)
    before = backbone_of(classifier).get_weights()
    with pytest.raises(ModelError, match=r"it has \d+% of its parameters.*nothing for batch_normalization.*elsewhere"):
        load_pretrained(classifier, "small", str(tmp_path / "w.weights.h5"))
    for mine, first in zip(backbone_of(classifier).get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, first)


def _old_file(path: pathlib.Path) -> h5py.File:
    file = h5py.File(path, "w")
    file.attrs["layer_names"] = [b"stem"]
    return file


def test_links_to_other_files_are_refused(tmp_path: pathlib.Path) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["stem/kernel"] = np.ones((3, 3, 3, 8), np.float32)
    for name, plant in {
        "link.h5": lambda file: file.__setitem__("stem", h5py.ExternalLink(str(secret), "stem")),
        "deep.h5": lambda file: file.create_group("stem").__setitem__("kernel", h5py.SoftLink("/stem")),
        "root.h5": lambda file: file.__setitem__("model_weights", h5py.ExternalLink(str(secret), "/")),
    }.items():
        with _old_file(tmp_path / name) as file:
            plant(file)
        with pytest.raises(ModelError, match="to another place"):
            _loaded(tmp_path / name)
    with _old_file(tmp_path / "external.h5") as file:
        external = [(str(secret), 0, 864)]
        file.create_group("stem").create_dataset("kernel", (3, 3, 3, 8), "f4", external=external)
    with pytest.raises(ModelError, match="another file"):
        _loaded(tmp_path / "external.h5")


def test_a_small_file_that_claims_a_huge_array_is_refused(tmp_path: pathlib.Path) -> None:
    with _old_file(tmp_path / "bomb.h5") as file:
        file.create_group("stem").create_dataset("kernel", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024))
    with pytest.raises(ModelError, match="claims to hold 4,398,046,511,104 bytes"):
        _loaded(tmp_path / "bomb.h5")


@pytest.mark.parametrize("name", ["w.weights.h5", "w.h5", "w.keras", "w.safetensors"])
def test_a_damaged_file_is_an_error_of_one_sentence(name: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / name).write_bytes(b"\x89HDF and nothing more")
    with pytest.raises(ModelError, match="is not a readable"):
        _loaded(tmp_path / name)


def test_a_file_of_another_kind_is_refused_with_those_that_are_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ModelError, match=r"expected one of .weights.h5, .h5, .keras, .safetensors"):
        _loaded(tmp_path / "weights.pth")
