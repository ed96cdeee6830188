"""Replace grouped convolutions of one channel each, as the ConvNeXt of Keras has them, by depthwise ones."""

from typing import Any

import keras
from keras import ops

from trainer.model.layers.replace_layers import replace_layers

Tensor = Any


class DepthwiseConv(keras.layers.Conv2D):
    """A Conv2D with as many groups as input channels, by the operation made for it; same weights, same answers.

    TensorFlow has no grouped convolution on the CPU outside XLA, and XLA there takes ten to a hundred times as long
    for one. Converters, too, know the depthwise operation and stop at a function that XLA must compile.
    """

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Convolve [b, h, w, c] with [kh, kw, 1, c * m], whose last axis is ordered by channel."""
        kernel = ops.reshape(kernel, (*kernel.shape[:2], self.groups, self.filters // self.groups))
        return ops.depthwise_conv(
            inputs, kernel, self.strides, self.padding, data_format=self.data_format, dilation_rate=self.dilation_rate
        )


def with_depthwise_operations(model: Any) -> Any:
    """Copy a functional `model` with new weights and each such layer replaced; return one without any as it is."""

    def replacement(layer: Any) -> Any | None:
        is_depthwise = type(layer) is keras.layers.Conv2D and layer.groups > 1 and layer.kernel.shape[2] == 1
        # The operation has one stride for both axes, and on the CPU channels come last
        if not is_depthwise or len(set(layer.strides)) > 1 or layer.data_format != "channels_last":
            return None
        return DepthwiseConv.from_config(layer.get_config())

    return replace_layers(model, replacement)
