"""Cut a classifier off behind the last features of which a head of ours can make logits."""

from typing import Any

import keras

from trainer.errors import ModelError
from trainer.model.backbones.blocks import cuts_of
from trainer.system.private_api.keras_graph import as_functional, call_that_made, calls_of


def without_head(model: Any, *, origin: str) -> Any:
    """Return `model`, a functional or sequential one, up to its last features, with the same layers and weights.

    Those are [batch, height, width, channels], the last before they are pooled or flattened. Where the network works on
    a sequence, as transformers do, they are what it makes of the sequence before its last layers, as
    [batch, 1, 1, channels].

    Raises:
        ModelError: `model` has several inputs or outputs, takes no RGB images, or has no such features.
    """
    model = check_takes_images(model, origin=origin)
    features = _last_features(model)
    if features is None:
        raise ModelError(
            f"{origin} has no features of height, width and channels, nor pooled ones, that a layer with weights "
            "makes; a backbone is a convolutional network or a transformer"
        )
    return _flattened(keras.Model(model.inputs[0], features, name=model.name))


def check_takes_images(model: Any, *, origin: str) -> Any:
    """Return `model` as a functional one; raises ModelError where it does not make one output of RGB images."""
    model = as_functional(model)
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelError(
            f"{origin} is a model of {len(inputs)} inputs and {len(outputs)} outputs; a backbone is a functional or "
            "sequential model with one of each"
        )
    if len(inputs[0].shape) != 4 or inputs[0].shape[-1] != 3:
        raise ModelError(f"{origin} takes {list(inputs[0].shape)}, not RGB images [batch, height, width, 3]")
    return model


def _last_features(model: Any) -> Any | None:
    """Return the last feature tensor, searched from the output back over the cuts of the graph; None without one."""
    after: Any = None
    for operation, tensor in reversed(cuts_of(model)):
        shape = tensor.shape
        if _is_image(shape):
            return tensor if _makes_something(model, tensor) else None
        if isinstance(operation, keras.Model) and not isinstance(operation, keras.Sequential):
            inner = _last_features(operation)
            if inner is not None:
                before = call_that_made(tensor, calls_of(model))
                return keras.Model(operation.inputs[0], inner, name=operation.name)(before.inputs[0])
        if len(shape) == 3:  # a sequence: its pooled form is what follows
            pooled = after if after is not None else keras.layers.GlobalAveragePooling1D(name="pool_sequence")(tensor)
            return keras.layers.Reshape((1, 1, pooled.shape[-1]), name="as_image")(pooled)
        after = tensor if len(shape) == 2 else after
    return None


def _is_image(shape: Any) -> bool:
    """Return whether there is still something to pool."""
    return len(shape) == 4 and tuple(shape[1:3]) != (1, 1)


def _makes_something(model: Any, tensor: Any) -> bool:
    return bool(keras.Model(model.inputs, tensor).weights)


def _flattened(model: Any) -> Any:
    """Unwrap the network within `model` where there is nothing else, so that its layers have names of their own."""
    networks = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    others = [layer for layer in model.layers if not isinstance(layer, keras.Model | keras.layers.InputLayer)]
    if len(networks) == 1 and not others and len(model.operations) == 2:
        return _flattened(keras.Model(networks[0].inputs[0], networks[0].outputs[0], name=networks[0].name))
    return model
