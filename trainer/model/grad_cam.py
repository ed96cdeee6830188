"""Show the parts of an image that speak for a class with Grad-CAM, Selvaraju et al., ICCV 2017 (arXiv 1610.02391)."""

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.errors import ModelError
from trainer.model.classifier import backbone_of
from trainer.system.private_api.keras_graph import calls_of

Floats = npt.NDArray[np.float32]


def grad_cam(classifier: Any, images: Floats, class_ids: npt.NDArray[np.int64]) -> Floats:
    """Compute heat maps [n, height, width] of the backbone's last feature map that has an extent, each in [0, 1].

    The channels of the map are weighted by the mean gradient of the class's logit and added up; what speaks against the
    class is left out, and the rest divided by the largest value of the image. All 0 where nothing speaks for the class.

    Args:
        classifier: of `build_classifier`.
        images: [n, size, size, 3], pixels 0 to 255.
        class_ids: [n], the class that is asked about.

    Raises:
        ModelError: the backbone has no feature map with height and width above 1.
    """
    before, within, after = _split(classifier)
    pixels = before(tf.constant(images, tf.float32), training=False)
    with tf.GradientTape() as tape:
        # Of a network that is frozen whole nothing else would be recorded.
        tape.watch(pixels)
        features, out = within(pixels, training=False)
        logits = after(out, training=False)
        chosen = tf.gather(logits, tf.constant(class_ids), axis=1, batch_dims=1)
    return _weigh(features, tape.gradient(chosen, features))


def _weigh(features: Any, gradients: Any) -> Floats:
    weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(weights * features, axis=-1)).numpy()
    largest = heat.max(axis=(1, 2), keepdims=True)
    maps: Floats = np.divide(heat, largest, out=np.zeros_like(heat), where=largest > 0)
    return maps


def _split(classifier: Any) -> tuple[Any, Any, Any]:
    """Split a classifier before and after its backbone, which gives its last feature map as well."""
    backbone = backbone_of(classifier)
    call = next(call for call in calls_of(classifier) if call.operation is backbone)
    before = keras.Model(classifier.inputs, call.inputs[0])
    within = keras.Model(backbone.inputs, [_last_feature_map(backbone), backbone.outputs[0]])
    after = keras.Model(call.outputs[0], classifier.outputs[0])
    return before, within, after


def _last_feature_map(backbone: Any) -> Any:
    # Neither the image itself nor one that is only padded with zeros is a feature map.
    no_maps = (keras.layers.InputLayer, keras.layers.ZeroPadding2D)
    # A network within the backbone has an output of its own beside what its call gives here.
    outputs = {id(call.operation): call.outputs[0] for call in calls_of(backbone)}
    for layer in reversed([layer for layer in backbone.layers if not isinstance(layer, no_maps)]):
        output = outputs[id(layer)]
        shape = getattr(output, "shape", ())
        if len(shape) == 4 and all(side is None or side > 1 for side in shape[1:3]):
            return output
    raise ModelError(
        f"the backbone {backbone.name} has no feature map of height and width above 1 at this image size, so there is "
        "nothing to draw; train with a larger model.image_size_px"
    )
