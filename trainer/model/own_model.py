"""A saved Keras model of the user's own as a backbone: `model.backbone: path/to/model.keras`.

A file from elsewhere is data: it may name layers of Keras and nothing else, so that opening it runs no code of its own.
"""

import contextlib
import functools
import json
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import keras

from trainer.errors import ModelError
from trainer.model.backbone import Backbone
from trainer.model.headless import without_head
from trainer.model.scaling import BY_NAME
from trainer.model.weight_files import open_hdf5, weights_in_archive

_SUFFIX = ".keras"
_DEFAULT_IMAGE_SIZE_PX = 224
_MAX_CONFIG_BYTES = 64 << 20
# What runs code, or reads other files.
_REFUSED_CLASSES = {"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "function", "__lambda__"}
_REFUSED_MODULES = ("keras.utils", "keras.saving", "keras.src.utils", "keras.src.saving", "keras.config")


def is_own_model(name: str) -> bool:
    """Whether `name`, a value of `model.backbone`, is the path of a saved model."""
    return name.endswith(_SUFFIX)


def open_backbone(name: str, pixels: str | None) -> Backbone:
    """The model in the file `name` without its head. Its preprocessing layers stay; layers that change images at random
    are left out, since that is the work of the settings `augment`.

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
    network = _open(path)
    height = network.input_shape[1]
    return Backbone(
        name=name,
        image_size_px=height or _DEFAULT_IMAGE_SIZE_PX,
        min_image_size_px=1,
        scaling=BY_NAME[pixels],
        build=lambda shape: _rebuild(network, shape, name),
        load_bundled=lambda model: model.set_weights(network.get_weights()),
    )


def _open(path: pathlib.Path) -> Any:
    if not path.is_file():
        raise ModelError(f"model.backbone names the file {path}, which does not exist; see trainer backbones for names")
    stat = path.stat()
    return _load(path.resolve(), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=2)
def _load(path: pathlib.Path, _mtime_ns: int, _num_bytes: int) -> Any:
    """Kept, because planning and building ask for the same file."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("config.json").file_size > _MAX_CONFIG_BYTES:
                raise ModelError(f"the config.json in {path} is larger than {_MAX_CONFIG_BYTES:,} bytes; it is refused")
            _check_config(json.loads(archive.read("config.json")), path)
            with contextlib.ExitStack() as stack:
                open_hdf5(stack.enter_context(weights_in_archive(archive, path)), path, stack)
        with _float32():
            model = keras.models.load_model(path, compile=False, safe_mode=True)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, zipfile.BadZipFile) as e:
        raise ModelError(f"{path} is not a readable model saved by Keras 3: {' '.join(str(e).split())[:300]}") from None
    return without_head(model, origin=str(path))


def _check_config(config: Any, path: pathlib.Path) -> None:
    for entry in _objects(config):
        class_name, module = str(entry.get("class_name")), entry.get("module")
        is_keras = module is None or str(module).split(".")[0] == "keras"
        registered = str(entry.get("registered_name") or "")
        if class_name in _REFUSED_CLASSES or not is_keras or str(module).startswith(_REFUSED_MODULES):
            raise ModelError(
                f"{path} asks for {class_name} of {module or 'no module'}, which is code and not a layer of Keras; "
                "save the model without it, with layers of Keras in its place"
            )
        if module is None and ">" in registered:
            raise ModelError(
                f"{path} asks for {registered}, a class of someone's own; save the model with layers of Keras in its "
                "place"
            )


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """All serialised objects in a configuration, however deep."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _rebuild(network: Any, shape: tuple[int, int, int], name: str) -> Any:
    """`network` with new random weights, for images of `shape`, under the current precision."""
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
    for layer in model._flatten_layers():
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
