"""TensorFlow Serving's own test model: y = x / 2 + 2, for tensors and for tf.Examples."""

import pathlib
from typing import Any


def save_half_plus_two(path: pathlib.Path) -> None:
    import tensorflow as tf  # after tf_runtime.configure()

    module = tf.Module()
    module.half = tf.Variable(0.5)

    def parse(serialized: Any) -> Any:
        return tf.io.parse_example(serialized, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]

    def y(x: Any) -> Any:
        return module.half * x + 2.0

    # The shapes are those of saved_model_half_plus_two_tf2_cpu, and of saved_model_half_plus_two_cpu ([-1, 1]).
    @tf.function(input_signature=[tf.TensorSpec([1], tf.float32, "x")])
    def predict(x: Any) -> dict[str, Any]:
        return {"y": y(x)}

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, "x")])
    def column(x: Any) -> dict[str, Any]:
        return {"y": y(x)}

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "x")])
    def pairs(x: Any) -> dict[str, Any]:
        return {"y": tf.matmul(x, [[1.0], [1.0]])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def regress(inputs: Any) -> dict[str, Any]:
        return {"outputs": y(parse(inputs))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def classify(inputs: Any) -> dict[str, Any]:
        return {"scores": y(parse(inputs))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def classify_by_name(inputs: Any) -> dict[str, Any]:
        scores = y(parse(inputs)) + tf.constant([0.0, 1.0])
        return {"scores": scores, "classes": tf.strings.as_string(scores, precision=1)}

    # Outputs that cannot be handed out where requests are batched.
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def total(x: Any) -> dict[str, Any]:
        return {"sum": tf.reduce_sum(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def first(x: Any) -> dict[str, Any]:
        return {"first": x[:1]}

    signatures = {
        "serving_default": predict,
        "column": column,
        "pairs": pairs,
        "regress_x_to_y": regress,
        "classify_x_to_y": classify,
        "classify_by_name": classify_by_name,
        "total": total,
        "first": first,
    }
    tf.saved_model.save(module, str(path), signatures=signatures)
