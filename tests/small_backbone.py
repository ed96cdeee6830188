"""A backbone of two convolutions, for tests of what happens around the network: it is built and traced in a second.

`small_backbone.keras` holds it with weights that tell digits apart, made by `python tests/small_backbone.py`.
"""

import pathlib
from typing import Final

PATH: Final = pathlib.Path(__file__).with_suffix(".keras")
SETTINGS: Final = (f"model.backbone={PATH}", "model.pixels=0-1")
OPTIONS: Final = tuple(f"--set={setting}" for setting in SETTINGS)


def write() -> None:
    """Train the backbone on scikit-learn's digits at 32 px and save it."""
    import keras
    import numpy as np
    import sklearn.datasets

    keras.utils.set_random_seed(0)
    layers = keras.layers
    pictures = keras.Input((None, None, 3), name="pictures")
    x = pictures
    for i, (filters, size, strides) in enumerate(((16, 5, 4), (32, 3, 2))):
        x = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False, name=f"convolution_{i}")(x)
        x = layers.BatchNormalization(name=f"normalization_{i}")(x)
        x = layers.ReLU(name=f"relu_{i}")(x)
    backbone = keras.Model(pictures, x, name="small_backbone")
    classifier = keras.Sequential([backbone, layers.GlobalAveragePooling2D(), layers.Dense(10)])
    classifier.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    digits = sklearn.datasets.load_digits()
    images = np.repeat(digits.images[..., None].astype(np.float32) / 16, 3, axis=-1).repeat(4, axis=1).repeat(4, axis=2)
    classifier.fit(images, digits.target, epochs=8, verbose=0)
    backbone.save(PATH)


if __name__ == "__main__":
    write()
