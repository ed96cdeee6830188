"""Records are written without building messages, and are still what the protocol buffer library writes."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import tensorflow as tf

from trainer.data.dataset.records import Example

EXAMPLES = st.builds(
    Example,
    encoded=st.binary(max_size=300),
    labels=st.sets(st.integers(0, 2**31 - 1), min_size=1, max_size=5).map(lambda labels: tuple(sorted(labels))),
    format=st.sampled_from(["jpeg", "png", "gif", "bmp", "webp"]),
    filename=st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.just("caf\udce9.png"),
    height=st.integers(1, 2**31 - 1),
    width=st.sampled_from([1, 127, 128, 16_383, 16_384]),
    weight=st.floats(2.0**-20, 2.0**20, width=32) | st.just(1.0),
)


def by_the_library(example: Example) -> bytes:
    def of_bytes(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def of_ints(*values: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    features = {
        "image/encoded": of_bytes(example.encoded),
        "image/class/label": of_ints(*example.labels),
        "image/format": of_bytes(example.format.encode()),
        "image/filename": of_bytes(example.filename.encode("utf-8", "surrogateescape")),
        "image/height": of_ints(example.height),
        "image/width": of_ints(example.width),
    }
    if example.weight != 1.0:
        features["image/weight"] = tf.train.Feature(float_list=tf.train.FloatList(value=[example.weight]))
    message = tf.train.Example(features=tf.train.Features(feature=features))
    serialized: bytes = message.SerializeToString(deterministic=True)
    return serialized


@hypothesis.given(example=EXAMPLES)
def test_a_payload_is_byte_for_byte_the_librarys(example: Example) -> None:
    assert example.to_payload() == by_the_library(example)
    assert Example.from_payload(example.to_payload()) == example


def test_a_large_image_is_as_well() -> None:
    encoded = np.random.default_rng(0).bytes(3_000_000)
    example = Example(encoded=encoded, labels=(7,), format="png", filename="a/b.png", height=1000, width=1000)
    assert example.to_payload() == by_the_library(example)
