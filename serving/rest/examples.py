"""Answer `:classify` and `:regress` calls: tf.Examples from JSON, and results to JSON.

The JSON follows tensorflow_serving/util/json_tensor.cc; what a signature must take and give is in `inference.examples`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from serving.http.json_tensors import parse_json_object, show, write_json
from serving.inference.examples import Method, check_signature, classifications, example_inputs, regressions
from serving.models.servable import Servable
from serving.protocol.status import invalid
from serving.protocol.tensors import Array
from serving.rest import codec, encoding
from serving.rest.decoded_call import DecodedCall

_INT64_LIMITS = np.iinfo(np.int64)


def decode_examples(body: bytes, servable: Servable, *, method: Method) -> DecodedCall:
    """Decode the body of a `:classify` or `:regress` call. Raises RequestError."""
    document = parse_json_object(body)
    signature = servable.signature(codec.parse_signature_name(document))
    check_signature(signature, method)
    examples, context = _parse_examples(document, method)
    results = {"classify": _classifications, "regress": _regressions}[method]

    def encode(outputs: Mapping[str, Array]) -> bytes:
        return write_json({"results": results(outputs, len(examples))})

    return DecodedCall(signature.name, example_inputs(examples, context), encode)


def _parse_examples(document: dict[str, Any], method: Method) -> tuple[list[bytes], bytes]:
    """Return the serialised examples, and the context that they share."""
    context = _serialize(document["context"]) if "context" in document else b""
    if "examples" not in document:
        raise invalid(f"When method is {method}, key 'examples' is expected and was not found")
    examples = document["examples"]
    if not isinstance(examples, list):
        raise invalid("Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid("'examples' value is an empty array")
    return [_serialize(example) for example in examples], context


def _serialize(example: Any) -> bytes:
    if not isinstance(example, dict):
        raise invalid(f"Example must be JSON object but got {show(example)}")
    message = tf.train.Example()
    for name, content in example.items():
        _fill(name, content if isinstance(content, list) else [content], message.features.feature[name])
    serialized: bytes = message.SerializeToString(deterministic=True)
    return serialized


def _fill(name: str, values: list[Any], feature: tf.train.Feature) -> None:
    for kind, matches, convert in _KINDS:
        if values and all(map(matches, values)):
            getattr(feature, kind).value.extend([convert(name, value) for value in values])
            return
    if values:
        raise invalid(
            f"Feature: {name} has elements that are not all of one type, which is integers, decimals, text or "
            f'{{"b64": "..."}}: {show(values)}'
        )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int)  # true and false are 1 and 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or codec.is_base64(value)


def _to_int64(name: str, value: int) -> int:
    if not _INT64_LIMITS.min <= value <= _INT64_LIMITS.max:
        raise invalid(f"Feature: {name} has {show(value)}. Only int64_t is supported.")
    return int(value)


def _to_float(name: str, value: float) -> float:
    return value


_KINDS: tuple[tuple[str, Callable[[Any], bool], Callable[[str, Any], Any]], ...] = (
    ("int64_list", _is_integer, _to_int64),
    ("float_list", lambda value: isinstance(value, float), _to_float),
    ("bytes_list", _is_text, codec.decode_string),
)


def _regressions(outputs: Mapping[str, Array], num_examples: int) -> list[float]:
    values: list[float] = encoding.encode_tensor("outputs", regressions(outputs, num_examples))
    return values


def _classifications(outputs: Mapping[str, Array], num_examples: int) -> list[list[list[Any]]]:
    """Return [class, score] for every class of every example."""
    results = classifications(outputs, num_examples)
    labels, scores = (
        encoding.encode_tensor(name, array) for name, array in zip(("classes", "scores"), results, strict=True)
    )
    return [
        [[label, score] for label, score in zip(names, row, strict=True)]
        for names, row in zip(labels, scores, strict=True)
    ]
