"""Networks of other kinds than the export's usual one, each through the converters and the gate.

One small network has the layers that converters trip over, together. TRAINER_TESTS_COMPLETE=1 takes the smallest
backbone of each family of the catalogue as well, with random weights, which is a quarter of an hour.
"""

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
from digits_classifier import CLASS_NAMES, SIZE_PX, ListedImages, read_digits
from exported import functions_that_ask_for_xla

from export.files.formats import FORMATS
from export.files.provenance import Provenance
from export.files.signature import Signature
from export.pipeline.make_export import ExportRequest, make_export
from export.runtime.samples import read_batch
from tests.complete import IS_COMPLETE
from trainer.data.decode.geometry import Geometry
from trainer.model.backbones.registry import find_backbone
from trainer.model.classifier import build_classifier
from trainer.model.layers.depthwise import with_depthwise_operations
from trainer.model.layers.dropout import ExampleDropout
from trainer.system.private_api.keras_graph import all_layers

NAMES = ["saved_model", "tflite-float32", "tflite-float16", "onnx", "onnx-float16"]
FAMILIES = [
    *("convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_b0", "inception_resnet_v2", "inception_v3"),
    *(
        "mobilenet",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "nasnet_mobile",
        "resnet50",
        "resnet50_v2",
        "vgg16",
        "xception",
    ),
]


def _small_network() -> Any:
    """The layers of EfficientNet, ResNet, ConvNeXt and MobileNetV3 that others have not."""
    layers = keras.layers
    images = keras.Input((SIZE_PX, SIZE_PX, 3), name="images")
    x = layers.Normalization(mean=[120.0, 115.0, 100.0], variance=[60.0**2, 58.0**2, 57.0**2])(images)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="swish")(layers.ZeroPadding2D(1)(x))
    x = layers.MaxPooling2D(2)(x)
    # Two of the smallest layers, which float16 files keep in 32 bits, read one tensor.
    x = layers.Concatenate()([layers.Conv2D(6, 1)(x), layers.Conv2D(10, 1, use_bias=False)(x)])
    x = layers.Conv2D(16, 3, padding="same", groups=16)(x)
    x = layers.Dense(64, activation="gelu")(layers.LayerNormalization(epsilon=1e-6)(x))
    gates = layers.Dense(64, activation="hard_sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Conv2D(64, 3, padding="same", activation="hard_swish")(layers.Multiply()([x, gates]))
    x = layers.GlobalAveragePooling2D()(layers.SeparableConv2D(64, 3, strides=2, activation="relu6")(x))
    return keras.Model(images, layers.Dense(len(CLASS_NAMES), name="head")(x), name="small")


def _spread(model: Any, images: np.ndarray) -> None:
    """Scales the head so that the random network's logits differ between images by about 1, and so can errors."""
    logits = model.predict(images, verbose=0)
    head = model.get_layer("head") if "head" in {layer.name for layer in model.layers} else model.layers[-1]
    kernel, bias = head.get_weights()
    scale = 1 / logits.std(axis=0).mean()
    head.set_weights([kernel * scale, (bias - logits.mean(axis=0)) * scale])


def _settle(model: Any, images: np.ndarray) -> None:
    """Batch statistics of real images: with those of a new layer, the activations of a deep network vanish."""
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
        if isinstance(layer, ExampleDropout):
            layer.rate = 0.0
    model(images.astype(np.float32), training=True)


def _publication(model: Any, name: str, validation: ListedImages, geometry: Geometry) -> ExportRequest:
    return ExportRequest(
        model=model,
        signature=Signature.of_classifier(model_name=name, class_names=CLASS_NAMES, geometry=geometry),
        version=1,
        formats=[FORMATS[name] for name in NAMES],
        validation=validation,
        training=read_digits("train"),
        provenance=Provenance(
            run_name="random",
            run_identity="cd" * 32,
            global_step=0,
            which="last",
            backbone=name,
            weights="none",
            precision="float32",
            num_train_examples=1200,
            config_yaml="",
        ),
        max_parity_images=None,
        build_bfloat16=lambda: model,
    )


def _check_all_formats(model: Any, name: str, size_px: int, validation: ListedImages, out: pathlib.Path) -> Any:
    geometry = Geometry(image_size_px=size_px, resize="crop")
    images = read_batch(validation, np.arange(64), geometry).images.astype(np.float32)
    _spread(model, images)
    # Random networks have thin margins: accuracy over a client's pixels says nothing of them, and 16 bits move many an
    # answer. A file that lost its weights would agree on a tenth.
    report = make_export(_publication(model, name, validation, geometry), out, allow_failed=True)
    comparisons = [c for c in report.comparisons if c.input in ("images", "image_bytes")]
    assert [c.title for c in comparisons if c.failure and "float16" not in c.format] == []
    assert len(comparisons) == len(NAMES) + 1
    agreements = {c.title: c.figures.agreement for c in comparisons if c.figures}
    assert {title: agreement for title, agreement in agreements.items() if agreement < 0.7} == {}
    assert functions_that_ask_for_xla(out / "saved_model" / name / "1") == []
    assert np.ptp(model.predict(images, verbose=0), axis=0).max() > 1, "its answers differ between images"
    return comparisons


def test_layers_that_converters_trip_over_are_within_budget_in_every_format(
    validation: ListedImages, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    keras.utils.set_random_seed(3)
    model = with_depthwise_operations(_small_network())
    comparisons = _check_all_formats(model, "small", SIZE_PX, validation, tmp_path / "export")
    assert [c.title for c in comparisons if c.failure] == []
    assert "gradient" not in caplog.text, "what does not concern the user is not told"


@pytest.mark.skipif(not IS_COMPLETE, reason="a quarter of an hour")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_backbones_survives_every_converter(
    name: str, validation: ListedImages, tmp_path: pathlib.Path
) -> None:
    keras.utils.set_random_seed(3)
    size_px = max(find_backbone(name).min_image_size_px, 64)
    model = build_classifier(
        backbone=name, num_classes=len(CLASS_NAMES), image_size_px=size_px, batch_norm="per_replica"
    )
    _settle(model, read_batch(validation, np.arange(64), Geometry(image_size_px=size_px, resize="crop")).images)
    _check_all_formats(model, name, size_px, validation, tmp_path / "export")
