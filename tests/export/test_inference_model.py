"""The one inference model: what it answers for each kind of task, by choice, and to images that are none."""

import io
import pathlib
from typing import Any

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from digits_classifier import CLASS_NAMES, GEOMETRY, ListedImages

from export.convert.inference_model import InferenceModel, num_features_of
from export.files.signature import Signature
from export.runtime.samples import load_images
from trainer.errors import ExportError

TEMPERATURE = 2.5
THRESHOLDS = [0.02, 0.5, 0.98, *[0.5] * 7]
NUM_IMAGES = 6


def signature_of(**of: Any) -> Signature:
    return Signature.of_classifier(model_name="digits", class_names=CLASS_NAMES, geometry=GEOMETRY, **of)


def converted(content: bytes, format: str, alpha: int | None = None) -> bytes:
    written = io.BytesIO()
    with PIL.Image.open(io.BytesIO(content)) as image:
        if alpha is not None:
            image.putalpha(alpha)
        image.save(written, format)
    return written.getvalue()


@pytest.fixture(scope="module")
def encoded(validation: ListedImages) -> list[bytes]:
    return validation.read(np.arange(NUM_IMAGES))[0]


@pytest.fixture(scope="module")
def images(encoded: list[bytes]) -> Any:
    return load_images(encoded, GEOMETRY).astype(np.float32)


@pytest.fixture(scope="module")
def logits(model: Any, images: Any) -> Any:
    return np.asarray(model(images, training=False))


@pytest.fixture(scope="module")
def multi_label(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The signatures of a SavedModel with everything that there is by choice."""
    signature = signature_of(
        task="multi_label", temperature=TEMPERATURE, thresholds=THRESHOLDS, with_logits=True,
        num_features=num_features_of(model),
    )  # fmt: skip
    return loaded_signatures(InferenceModel(model, signature), tmp_path_factory.mktemp("multi_label"))


@pytest.fixture(scope="module")
def single_label(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    inference = InferenceModel(model, signature_of(temperature=TEMPERATURE))
    return loaded_signatures(inference, tmp_path_factory.mktemp("single_label"))


def loaded_signatures(inference: InferenceModel, directory: pathlib.Path) -> Any:
    signatures = {"serving_default": inference.image_bytes, "images": inference.images}
    tf.saved_model.save(inference, str(directory), signatures=signatures)
    loaded = tf.saved_model.load(str(directory))

    def call(name: str, **inputs: Any) -> dict[str, Any]:
        tensors = {key: tf.constant(values) for key, values in inputs.items()}
        return {key: values.numpy() for key, values in loaded.signatures[name](**tensors).items()}

    return call


def test_probabilities_of_several_labels_are_each_by_itself_and_decided_by_their_thresholds(
    multi_label: Any, images: Any, logits: Any
) -> None:
    answer = multi_label("images", images=images)
    np.testing.assert_allclose(answer["probabilities"], 1 / (1 + np.exp(-logits / TEMPERATURE)), atol=1e-6)
    assert answer["predicted"].dtype == np.bool_ and answer["predicted"].shape == (NUM_IMAGES, len(CLASS_NAMES))
    np.testing.assert_array_equal(answer["predicted"], answer["probabilities"] >= np.float32(THRESHOLDS))
    # The thresholds are such that they matter on these images.
    assert (answer["predicted"] != (answer["probabilities"] >= 0.5)).any()
    assert [label.decode() for label in answer["label"]] == [CLASS_NAMES[i] for i in logits.argmax(axis=-1)]


def test_probabilities_of_one_label_are_the_softmax_of_the_calibrated_logits(
    single_label: Any, images: Any, logits: Any
) -> None:
    answer = single_label("images", images=images)
    exponentials = np.exp(logits / TEMPERATURE)
    np.testing.assert_allclose(
        answer["probabilities"], exponentials / exponentials.sum(axis=-1, keepdims=True), atol=1e-6
    )
    assert set(answer) == {"probabilities", "class_id", "label", "status"}


def test_logits_and_features_are_those_of_the_head(multi_label: Any, model: Any, images: Any, logits: Any) -> None:
    answer = multi_label("images", images=images)
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-5, atol=1e-5)
    kernel, bias = model.get_layer("head").get_weights()
    assert answer["features"].shape == (NUM_IMAGES, num_features_of(model)) == (NUM_IMAGES, len(kernel))
    np.testing.assert_allclose(answer["features"] @ kernel + bias, logits, rtol=1e-4, atol=1e-4)


def test_every_output_is_as_the_signature_says(multi_label: Any, model: Any, images: Any, encoded: Any) -> None:
    signature = signature_of(
        task="multi_label", thresholds=THRESHOLDS, with_logits=True, num_features=num_features_of(model)
    )
    for name, inputs in (("images", {"images": images}), ("serving_default", {"image_bytes": encoded})):
        answer = multi_label(name, **inputs)
        promised = {o.name: o for o in signature.outputs if name in o.signatures}
        assert set(answer) == set(promised)
        for key, values in answer.items():
            assert values.shape == (NUM_IMAGES, *promised[key].shape[1:])
            assert {"object": "string"}.get(values.dtype.name, values.dtype.name) == promised[key].dtype
            if promised[key].range is not None:
                least, largest = promised[key].range
                assert least <= values.min() and values.max() <= largest


def test_a_bad_image_does_not_sink_its_batch(multi_label: Any, encoded: list[bytes]) -> None:
    good = converted(encoded[1], "JPEG"), converted(encoded[2], "GIF"), converted(encoded[3], "WEBP")
    transparent = converted(encoded[4], "WEBP", alpha=100)
    files = {
        "png": (encoded[0], "ok"),
        "empty": (b"", "not_an_image"),
        "jpeg": (good[0], "ok"),
        "text": (b"hello, this is text", "not_an_image"),
        "cut png": (encoded[0][: len(encoded[0]) // 2], "undecodable"),
        "cut jpeg": (good[0][: len(good[0]) // 2], "undecodable"),
        "gif": (good[1], "ok"),
        "tiff": (converted(encoded[0], "TIFF"), "not_an_image"),
        "head alone": (encoded[0][:8], "undecodable"),
        "transparent webp": (transparent, "transparent"),
        "webp": (good[2], "ok"),
    }
    answer = multi_label("serving_default", image_bytes=[content for content, _ in files.values()])
    status = [value.decode() for value in answer["status"]]
    assert dict(zip(files, status, strict=True)) == {name: expected for name, (_, expected) in files.items()}
    for i, (content, expected) in enumerate(files.values()):
        if expected == "ok":
            alone = multi_label("serving_default", image_bytes=[content])
            for name in ("probabilities", "logits", "features"):
                np.testing.assert_allclose(answer[name][i], alone[name][0], rtol=1e-4, atol=1e-5)
            assert answer["label"][i] == alone["label"][0]
        else:
            assert all(not answer[name][i].any() for name in ("probabilities", "predicted", "logits", "features"))
            assert (answer["class_id"][i], answer["label"][i]) == (-1, b"")


@pytest.mark.parametrize("batch", [[b""], [b"x", b""]])
def test_a_batch_without_any_image_is_answered(single_label: Any, batch: list[bytes]) -> None:
    answer = single_label("serving_default", image_bytes=batch)
    assert answer["status"].tolist() == [b"not_an_image"] * len(batch)
    assert answer["probabilities"].shape == (len(batch), len(CLASS_NAMES))


def test_images_as_bytes_and_as_pixels_are_answered_alike(multi_label: Any, images: Any, encoded: list[bytes]) -> None:
    from_bytes, from_pixels = multi_label("serving_default", image_bytes=encoded), multi_label("images", images=images)
    # Once more beside a bad one, which takes another way through the graph.
    beside = multi_label("serving_default", image_bytes=[b"", *encoded])
    for name, values in from_pixels.items():
        np.testing.assert_array_equal(from_bytes[name], values)
        if values.dtype == np.float32:
            np.testing.assert_allclose(beside[name][1:], values, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(beside[name][1:], values)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.5, 255.5, 1e30])
def test_pixels_that_cannot_be_right_have_a_status_and_no_class(multi_label: Any, images: Any, value: float) -> None:
    given = images.copy()
    given[1, 3, 4, 2] = value
    answer, right = multi_label("images", images=given), multi_label("images", images=images)
    assert answer["status"].tolist() == [b"ok", b"bad_pixels", *[b"ok"] * (NUM_IMAGES - 2)]
    assert (answer["class_id"][1], answer["label"][1]) == (-1, b"")
    for name in ("probabilities", "predicted", "logits", "features"):
        assert not answer[name][1].any() and np.isfinite(answer[name]).all()
    for name, values in answer.items():
        np.testing.assert_array_equal(np.delete(values, 1, 0), np.delete(right[name], 1, 0))


def test_features_are_refused_where_no_layer_is_the_head() -> None:
    pixels = keras.Input((24, 24, 3))
    model = keras.Model(pixels, keras.layers.Flatten(name="all")(pixels), name="headless")
    with pytest.raises(ExportError, match="headless has no layer called head"):
        InferenceModel(model, signature_of(num_features=3))
