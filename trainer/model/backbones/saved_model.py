"""A saved Keras model of the user's own as a backbone: `model.backbone: path/to/model.keras`.

A file from elsewhere is data: it may name layers of Keras and nothing else, so that opening it runs no code of its own,
unless the user says --trust.
"""

import contextlib
import functools
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import keras

from trainer.errors import ModelError
from trainer.model.backbones.backbone import Backbone
from trainer.model.backbones.headless import check_takes_images, without_head
from trainer.model.backbones.scaling import BY_NAME
from trainer.model.files.saved_archive import open_archive, open_weights, read_config
from trainer.model.files.saved_config import check_config, check_sizes
from trainer.model.files.weight_files import UNREADABLE, open_hdf5
from trainer.model.last_layer import LastLayer, find_last_layer, up_to_last_layer
from trainer.system import trust
from trainer.system.private_api.keras_graph import all_layers
from trainer.system.private_api.keras_scopes import safe_mode

_SUFFIX = ".keras"
_DEFAULT_IMAGE_SIZE_PX = 224


def is_own_model(name: str) -> bool:
    """Return whether `name`, a value of `model.backbone`, is the path of a saved model."""
    return name.endswith(_SUFFIX)


def last_layer_of(name: str) -> LastLayer | None:
    """Return the last layer of the model in the file `name`; None where it does not end with a dense layer.

    Raises ModelError as `open_backbone`.
    """
    return find_last_layer(_open(pathlib.Path(name)))


def check_features(name: str) -> None:
    """Raise ModelError if the model in the file `name` has no features for a head of ours."""
    without_head(_open(pathlib.Path(name)), origin=name)


def open_backbone(name: str, pixels: str | None, *, to_last_layer: bool = False) -> Backbone:
    """Open the model in the file `name` without its head, or with `to_last_layer` up to its last layer.

    `load_last_layer` then sets the weights of that layer. Preprocessing layers stay; layers that change images at
    random are left out, since the settings `augment` do that.

    Raises:
        ModelError: the file is missing, damaged, asks for code that is not Keras's, or is no model of images; or
            `pixels` is none of `scaling.BY_NAME`.
    """
    path = pathlib.Path(name)
    if pixels not in BY_NAME:
        raise ModelError(
            f"model.backbone is {name}, and model.pixels is {'not set' if pixels is None else repr(pixels)}; nobody "
            f"can tell from a file what pixels it was trained on: set model.pixels to one of {', '.join(BY_NAME)} "
            "(caffe: BGR less the mean of ImageNet; torch: mean 0, deviation 1; 0-255 for a model that scales itself)"
        )
    model = check_takes_images(_open(path), origin=str(path))
    last = find_last_layer(model) if to_last_layer else None

    @functools.cache
    def network() -> Any:
        return without_head(model, origin=str(path)) if last is None else up_to_last_layer(model, last)

    height = model.inputs[0].shape[1]
    return Backbone(
        name=name,
        image_size_px=height or _DEFAULT_IMAGE_SIZE_PX,
        min_image_size_px=1,
        scaling=BY_NAME[pixels],
        build=lambda shape: _rebuild(network(), shape, name),
        load_bundled=lambda model: model.set_weights(network().get_weights()),
        load_last_layer=None if last is None else lambda head: _copy_last_layer(last.dense, head),
    )


def _copy_last_layer(source: Any, head: Any) -> None:
    head.kernel.assign(source.kernel)
    # Its own starts at zero where the saved layer has none.
    if source.use_bias:
        head.bias.assign(source.bias)


def _open(path: pathlib.Path) -> Any:
    if not path.is_file():
        raise ModelError(f"model.backbone names the file {path}, which does not exist; see trainer backbones for names")
    stat = path.stat()
    return _load(path.resolve(), stat.st_mtime_ns, stat.st_size, trust.is_given())


@functools.lru_cache(maxsize=2)
def _load(path: pathlib.Path, _mtime_ns: int, _num_bytes: int, _is_trusted: bool) -> Any:
    """Load a file once, because planning and building ask for the same one."""
    try:
        with open_archive(path) as archive, open_weights(archive) as weights, contextlib.ExitStack() as stack:
            config = read_config(archive)
            if not trust.is_given():
                check_config(config, path)
            arrays = open_hdf5(weights, path, stack)
        with _float32(), safe_mode(not trust.is_given()):
            config = {**config, "compile_config": None}
            check_sizes(config, path, num_stored=sum(math.prod(array.shape) for array in arrays))
            return keras.models.load_model(path, compile=False, safe_mode=not trust.is_given())
    except UNREADABLE as e:
        raise ModelError(f"{path} is not a readable model saved by Keras 3: {' '.join(str(e).split())[:300]}") from None


def _rebuild(network: Any, shape: tuple[int, int, int], name: str) -> Any:
    """Copy `network` with new random weights, for images of `shape`, under the current precision."""
    policy = keras.config.dtype_policy().name

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if _is_augmentation(layer):
            return keras.layers.Identity(name=layer.name)
        if isinstance(config.get("dtype"), dict | str) and layer.dtype_policy.name == "float32":
            config["dtype"] = policy
        return layer.__class__.from_config(config)

    try:
        inputs = keras.Input(shape)
        with safe_mode(not trust.is_given()):  # which comes after `check_config`; without it a Lambda can be built
            model = keras.models.clone_model(network, input_tensors=inputs, clone_function=clone, recursive=True)
        changed = model.count_params() != network.count_params()
    except ValueError:
        changed = True
    if changed:
        raise ModelError(
            f"{name} takes images of {network.input_shape[1]} px and cannot be built for {shape[0]} px; use "
            f"--set model.image_size_px={network.input_shape[1]}"
        )
    _check_randomness(model, name)
    return model


def _is_augmentation(layer: Any) -> bool:
    return isinstance(layer, keras.layers.Layer) and type(layer).__name__.startswith(
        ("Random", "AutoContrast", "AugMix", "CutMix", "MixUp")
    )


def _check_randomness(model: Any, name: str) -> None:
    for layer in all_layers(model):
        if hasattr(layer, "seed_generator") and type(layer) is not keras.layers.Dropout and layer.seed_generator:
            raise ModelError(
                f"{name} holds {layer.name}, a {type(layer).__name__}, whose random numbers would differ from replica "
                "to replica; save the model without it, or with Dropout"
            )


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
