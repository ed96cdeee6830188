"""The network: pixels 0-255, scaled for the backbone, through the backbone, to the head and its logits."""

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np

from trainer.config.model import ModelConfig
from trainer.config.training import ModelTask
from trainer.errors import ModelError
from trainer.model.backbones.backbone import Backbone
from trainer.model.backbones.registry import find_backbone
from trainer.model.backbones.scaling import PixelScaling, ScalePixels
from trainer.model.freezing import set_trainable
from trainer.model.head import Head
from trainer.model.layers.batch_norm import with_frozen_statistics, with_synchronized_statistics
from trainer.model.layers.depthwise import with_depthwise_operations
from trainer.model.layers.dropout import with_example_dropout
from trainer.system.private_api.keras_graph import is_seed

BatchNorm = Literal["frozen", "frozen_statistics", "per_replica", "synchronized"]
_LINEAR_HEAD = Head()


def build_classifier(
    *,
    backbone: str,
    num_classes: int,
    image_size_px: int,
    head: Head = _LINEAR_HEAD,
    trainable: str = "all",
    batch_norm: BatchNorm = "frozen",
    features_at: str | None = None,
    pixels: str | None = None,
    to_last_layer: bool = False,
    dtype_policy: str = "float32",
    other_sizes_px: Sequence[int] = (),
) -> Any:
    """Build a classifier with random weights.

    Its input `images` is [batch, image_size_px, image_size_px, 3], pixels 0 to 255, RGB, of any number type; its
    output [batch, num_classes] logits, float32 under every policy. Layer names and the order of the variables depend
    on the arguments alone. The settings `model` explain those that have their names.

    Args:
        backbone: see `registry.find_backbone`.
        num_classes: how many logits there are.
        image_size_px: height and width of the images.
        head: what turns features into logits.
        trainable: which layers of the backbone are trained; the head always is.
        batch_norm: where the backbone's batch normalisations take their statistics from.
        features_at: the layer of the backbone whose output the head gets; None for the last.
        pixels: what a model of the user's own was trained on.
        to_last_layer: whether a model of the user's own stays as it is up to its last layer.
        dtype_policy: of Keras, such as mixed_bfloat16.
        other_sizes_px: sides of images that it takes as well; at `image_size_px` it computes the same as without.

    Raises:
        ModelError: the backbone is unknown, has no such layer or blocks, the images are too small for it, or it cannot
            take the other sizes.
    """
    spec = find_backbone(backbone, pixels, to_last_layer=to_last_layer)
    if image_size_px < spec.min_image_size_px:
        raise ModelError(
            f"{spec.name} takes images of at least {spec.min_image_size_px} px, not {image_size_px}; "
            f"use --set model.image_size_px={spec.image_size_px}"
        )
    if other_sizes_px and head.pooling == "flatten":
        raise ModelError(
            "model.pooling is flatten, whose size goes with that of the images, and augment.progressive_sizes_px asks "
            "for several; use --set model.pooling=average"
        )
    shape: Any = (image_size_px, image_size_px, 3)
    with _dtype_policy(dtype_policy):
        network = with_depthwise_operations(with_example_dropout(up_to(spec.build(shape), features_at)))
        if batch_norm == "synchronized":
            network = with_synchronized_statistics(network)
        elif batch_norm == "frozen_statistics":
            network = with_frozen_statistics(network)
        if other_sizes_px:
            network, shape = _for_any_size(network, spec.name, other_sizes_px), (None, None, 3)
        set_trainable(network, trainable, keeps_statistics=batch_norm == "frozen")
        images = keras.Input(shape, name="images", dtype="float32")
        x = _scale_pixels(spec.scaling)(images)
        return keras.Model(images, head(network(x), num_classes), name="classifier")


def build_configured(
    config: ModelConfig, *, task: ModelTask, num_classes: int, image_size_px: int, **for_training: Any
) -> Any:
    """Build the classifier of a run: `build_classifier` with the backbone and head that `config` names.

    `for_training` are other arguments of it, which do not change what the classifier answers.
    """
    is_synchronized = for_training.get("batch_norm") == "synchronized"
    head = Head.of(config, has_one_logit=task == "binary", is_synchronized=is_synchronized)
    return build_classifier(
        backbone=config.backbone,
        num_classes=num_classes,
        image_size_px=image_size_px,
        head=head,
        features_at=config.features_at,
        pixels=config.pixels,
        **for_training,
    )


def backbone_of(classifier: Any) -> Any:
    """Return the backbone inside a model that `build_classifier` made."""
    network = find_backbone_in(classifier)
    assert network is not None, "a classifier has one"
    return network


def find_backbone_in(model: Any) -> Any | None:
    """Return the backbone inside a classifier, or the part of it in a part of a classifier; None without one."""
    return next((layer for layer in model.layers if isinstance(layer, keras.Model)), None)


def head_layers_of(classifier: Any) -> list[Any]:
    """Return the layers with weights behind the backbone, in order."""
    network = backbone_of(classifier)
    behind = classifier.layers[classifier.layers.index(network) + 1 :]
    return [layer for layer in behind if saved_variables(layer)]


def resolve_weights(weights: str, backbone: Backbone) -> str:
    """Replace `auto` by the bundled weights where the backbone has some, and by ImageNet's otherwise."""
    if weights != "auto":
        return weights
    return "bundled" if backbone.load_bundled else "imagenet"


def saved_variables(model: Any) -> list[Any]:
    """Return the variables that a checkpoint holds: all but the seeds of dropout, which follow from the step."""
    return [v for v in model.variables if not is_seed(v)]


def named_arrays(variables: list[Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the variables' values by names that are the same in every process: position, then path.

    Keras numbers unnamed layers over the life of a process, so a path alone may differ between two builds.
    """
    return {f"{i:05d}:{v.path}": np.asarray(v.numpy()) for i, v in enumerate(variables)}


def assign_arrays(variables: list[Any], arrays: dict[str, np.ndarray[Any, Any]], *, origin: str) -> None:
    """Set `variables` from what `named_arrays` returned for the same architecture; extra arrays are left alone.

    Raises:
        ModelError: as `match_arrays`.
    """
    for variable, array in match_arrays(variables, arrays, origin=origin):
        variable.assign(array)


def match_arrays(
    variables: list[Any], arrays: dict[str, np.ndarray[Any, Any]], *, origin: str
) -> list[tuple[Any, np.ndarray[Any, Any]]]:
    """Pair each of `variables` with its array.

    Raises:
        ModelError: an array is missing or of another shape.
    """
    matched = []
    by_position = {name.partition(":")[0]: (name, array) for name, array in arrays.items()}
    for i, variable in enumerate(variables):
        name, array = by_position.get(f"{i:05d}", ("", None))
        if array is None:
            raise ModelError(
                f"{origin} holds no array for variable {i}, {variable.path}; it is of another architecture"
            )
        if tuple(array.shape) != tuple(variable.shape):
            raise ModelError(
                f"{origin} does not fit the model: {name.partition(':')[2]} has shape {list(array.shape)}, "
                f"and the model's {variable.path} wants {list(variable.shape)}"
            )
        matched.append((variable, array))
    return matched


@contextlib.contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def up_to(network: Any, layer_name: str | None) -> Any:
    """Cut `network` off after the output of one of its layers; None keeps it whole."""
    if layer_name is None:
        return network
    by_name = {layer.name: layer for layer in network.layers}
    if layer_name not in by_name or len(by_name[layer_name].output.shape) != 4:
        names = [name for name, layer in by_name.items() if len(layer.output.shape) == 4]
        near = difflib.get_close_matches(layer_name, names, n=3, cutoff=0.4) or names[-3:]
        raise ModelError(
            f"model.features_at is {layer_name}, which is no layer of {network.name} with an output of height, width "
            f"and channels; such as {', '.join(near)}"
        )
    return keras.Model(network.input, by_name[layer_name].output, name=network.name)


def _for_any_size(network: Any, name: str, sizes_px: Sequence[int]) -> Any:
    """Copy `network` with new weights and without a fixed input size. Paddings chosen for that size stay."""

    def clone(layer: Any) -> Any:
        if not isinstance(layer, keras.Sequential):
            return type(layer).from_config(layer.get_config())
        # Its own settings hold the size that it was built for (the stem and the strides of a ConvNeXt)
        return keras.Sequential([clone(inner) for inner in layer.layers], name=layer.name)

    network = keras.models.clone_model(network, input_tensors=keras.Input((None, None, 3)), clone_function=clone)
    for size_px in sizes_px:
        try:
            network(keras.Input((size_px, size_px, 3)))
        except ValueError:
            raise ModelError(
                f"the backbone {name}, padded for its full size, cannot take images of {size_px} px; use multiples of "
                "32 in augment.progressive_sizes_px, or leave it out"
            ) from None
    return network


def _scale_pixels(scaling: PixelScaling) -> ScalePixels:
    return ScalePixels(scaling.scale, scaling.offset, scaling.to_bgr, name="scale_pixels")
