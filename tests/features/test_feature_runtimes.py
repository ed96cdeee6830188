"""Other runtimes give Keras's numbers, also for networks that need a converter; where one does not, it is not used."""

import keras
import numpy as np
import pytest
from feature_runs import FinishedRun

from trainer.errors import ModelError
from trainer.features import extract
from trainer.features.onnx_graph import NotWrittenError, write_onnx
from trainer.features.runtimes import MAX_RELATIVE_DIFFERENCE, make_compute, relative_difference
from trainer.model.classifier import ScalePixels
from trainer.model.layers.dropout import ExampleDropout

pytestmark = pytest.mark.slow

layers = keras.layers
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 20, 24, 3), dtype=np.uint8)


def with_random_weights(model: keras.Model) -> keras.Model:
    """As they are made, biases are zero and batch normalisation does nothing."""
    generator = np.random.default_rng(1)
    for variable in model.variables:
        variable.assign(generator.normal(0.05, 0.2, variable.shape))
        if "variance" in variable.path:
            variable.assign(generator.uniform(0.5, 2, variable.shape))
    return model


def every_layer() -> keras.Model:
    """A call of every kind of layer that is written directly."""
    inputs = keras.Input((20, 24, 3))
    x = ScalePixels((0.02, 0.03, 0.01), (-1.0, -2.0, 0.5), to_bgr=True)(inputs)
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 0.5])(layers.Rescaling(0.9, offset=0.1)(x))
    x = layers.ZeroPadding2D(((0, 1), (2, 3)))(layers.Activation("relu")(x))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="silu")(x)
    x = layers.BatchNormalization(epsilon=0.01)(x)
    y = layers.Conv2D(8, (3, 2), padding="same", groups=2, use_bias=False, activation="relu6")(x)
    y = layers.DepthwiseConv2D(3, padding="same", activation="hard_silu")(y)
    y = layers.BatchNormalization(center=False, scale=False)(layers.ReLU(0.3)(y))
    x = layers.Add()([x, ExampleDropout(0.5)(y), layers.Dropout(0.5)(y)])
    gate = layers.GlobalAveragePooling2D()(x)
    gate = layers.Conv2D(8, 1, activation="hard_sigmoid")(layers.Reshape((1, 1, 8))(gate))
    x = layers.Multiply()([x, gate])
    x = layers.Concatenate()([layers.MaxPooling2D(3, strides=1, padding="same")(x), layers.Activation("tanh")(x)])
    x = layers.AveragePooling2D(2, padding="same")(layers.ReLU()(x))
    inner = keras.Input(x.shape[1:])
    x = keras.Model(inner, layers.Conv2D(6, 2, activation="sigmoid")(inner))(x)
    pooled = layers.GlobalMaxPooling2D()(x)
    return with_random_weights(
        keras.Model(inputs, layers.Concatenate()([layers.Dense(7, activation="relu")(layers.Flatten()(x)), pooled]))
    )


def other_layers() -> keras.Model:
    """With a layer that is not written directly, and images for features."""
    inputs = keras.Input((20, 24, 3))
    x = layers.SeparableConv2D(4, 3, depth_multiplier=2, dilation_rate=2, padding="same")(
        layers.Rescaling(1 / 128)(inputs)
    )
    return with_random_weights(keras.Model(inputs, layers.LeakyReLU()(x)))


@pytest.mark.parametrize(
    ("runtime", "build"),
    [("onnxruntime", every_layer), ("onnxruntime", other_layers), ("litert", every_layer)],
    ids=["written", "converted", "litert"],
)
def test_another_runtime_gives_the_numbers_of_keras(runtime: str, build) -> None:
    model = build()
    compute = make_compute(runtime, model)
    found = compute(IMAGES)
    assert found.shape == (9, *model.output_shape[1:]) and found.dtype == np.float32
    expected = np.asarray(model(IMAGES.astype(np.float32), training=False))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert np.ptp(expected, axis=0).max() > 1e-3, "the images must differ in their features"
    assert relative_difference(compute, model, IMAGES) <= MAX_RELATIVE_DIFFERENCE


def test_the_writer_covers_what_it_says() -> None:
    assert write_onnx(every_layer())
    with pytest.raises(NotWrittenError, match="SeparableConv2D"):
        write_onnx(other_layers())


def test_the_comparison_sees_other_numbers() -> None:
    model = every_layer()
    compute = make_compute("onnxruntime", model)
    assert relative_difference(lambda images: compute(images) * 1.001, model, IMAGES) > MAX_RELATIVE_DIFFERENCE
    assert relative_difference(lambda images: compute(images) * np.nan, model, IMAGES) == np.inf


@pytest.fixture
def wrong_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(runtime, trunk):
        compute = make_compute(runtime, trunk)
        return (lambda images: compute(images) * 1.01) if runtime == "onnxruntime" else compute

    monkeypatch.setattr(extract, "make_compute", make)


def test_a_runtime_with_other_numbers_gives_way_to_the_next_and_says_so(
    plain_run: FinishedRun, run_again, wrong_onnxruntime: None, tmp_path
) -> None:
    run = run_again(f"features.dir={tmp_path / 'store'}")
    (warning,) = [note for note in run.notes if "onnxruntime gives features that differ" in note]
    assert "the next runtime is used" in warning
    headers = [file.read_text() for file in (tmp_path / "store").glob("*/header.json")]
    assert len(headers) == 2 and all('"runtime": "litert' in header for header in headers)
    np.testing.assert_allclose(run.metrics("loss"), plain_run.metrics("loss"), rtol=1e-3)


def test_a_runtime_asked_for_by_name_with_other_numbers_is_an_error(
    run_again, wrong_onnxruntime: None, tmp_path
) -> None:
    with pytest.raises(ModelError, match=r"differ from Keras's by 1\.0e-02 .*use --set features\.runtime=tensorflow"):
        run_again("features.runtime=onnxruntime", f"features.dir={tmp_path / 'store'}")
