"""The weights that a classifier's backbone starts from: bundled, of ImageNet, of a file or a run, or none."""

import pathlib
from collections.abc import Sequence
from typing import Any

from trainer.errors import ModelError
from trainer.model.backbones.backbone import Backbone
from trainer.model.backbones.registry import find_backbone
from trainer.model.classifier import backbone_of, head_layers_of, up_to
from trainer.model.files.weight_files import open_weight_file
from trainer.model.layers.dropout import with_example_dropout
from trainer.model.match_weights import WeightsReport, assign, match, match_head


def load_pretrained(
    classifier: Any,
    backbone_name: str,
    weights: str,
    *,
    pixels: str | None = None,
    features_at: str | None = None,
    keeps_head: bool = False,
    to_last_layer: bool = False,
) -> WeightsReport | None:
    """Set the backbone's weights to `weights`: bundled, imagenet, none, or the path of a weight file.

    `pixels` and `features_at` are the settings of the model; with `keeps_head`, the head starts from the weights as
    well; for both others see `head_choice`. Returns what of a file fitted; None for the backbone's own weights.

    Raises:
        ModelError: there are no such weights, they cannot be downloaded, or they do not fit.
    """
    if weights == "none":
        return None
    spec, network = find_backbone(backbone_name, pixels, to_last_layer=to_last_layer), backbone_of(classifier)
    if features_at is None:
        return load_backbone_weights(spec, network, weights, head=head_layers_of(classifier) if keeps_head else ())
    # Files hold the weights of the whole network.
    whole = with_example_dropout(spec.build(tuple(network.input_shape[1:])))
    report = load_backbone_weights(spec, whole, weights)
    network.set_weights(up_to(whole, features_at).get_weights())
    return report


def load_backbone_weights(
    spec: Backbone, network: Any, weights: str, *, head: Sequence[Any] = ()
) -> WeightsReport | None:
    """Load weights, which are not none, into a whole backbone of `spec.build` as `load_pretrained` does.

    The layers of a `head` get those that the weights hold of them.
    """
    if weights == "bundled":
        if spec.load_bundled is None:
            raise ModelError(f"{spec.name} has no bundled weights; use --set model.weights=imagenet, none or a file")
        spec.load_bundled(network)
        if head and spec.load_last_layer is not None:
            spec.load_last_layer(head[-1])
    elif weights == "imagenet":
        _copy_imagenet_weights(spec, network)
    else:
        with open_weight_file(pathlib.Path(weights)) as arrays:
            found = match(network, arrays, file=weights, backbone=spec.name)
            of_head = match_head(found.left_over, list(head)) if head else []
            if of_head is None:
                raise ModelError(f"{weights} has no such last layer any more; use --set model.head=replace")
            assign([*found.pairs, *of_head])
            return found.report.with_head(of_head)
    return None


def _copy_imagenet_weights(spec: Backbone, network: Any) -> None:
    if spec.build_imagenet is None:
        raise ModelError(f"{spec.name} has no ImageNet weights to download; use --set model.weights=bundled")
    try:
        source = spec.build_imagenet(tuple(network.input_shape[1:]))
    except Exception as e:  # keras.utils.get_file raises a bare Exception when it cannot download
        raise ModelError(
            f"the ImageNet weights of {spec.name} could not be had ({' '.join(str(e).split())}); without a network, "
            "use --set model.weights=none, a weight file, or a backbone with bundled weights such as efficientnet_lite0"
        ) from e
    network.set_weights(source.get_weights())
