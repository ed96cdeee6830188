"""Answer `:classify` and `:regress` calls: run a signature on tf.Examples from JSON.

The JSON follows tensorflow_serving/util/json_tensor.cc, the requirements on signature and outputs
servables/tensorflow/classifier.cc and regressor.cc.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from serving.models.servable import Servable
from serving.protocol.status import invalid
from serving.protocol.tensors import Array, SignatureSpec
from serving.rest import codec, encoding
from serving.rest.decoded_call import DecodedCall

Method = Literal["classify", "regress"]

_INPUTS = "inputs"
_SCORES, _CLASSES, _OUTPUTS = "scores", "classes", "outputs"
_INT64_LIMITS = np.iinfo(np.int64)


def decode_examples(body: bytes, servable: Servable, *, method: Method) -> DecodedCall:
    """Decode the body of a `:classify` or `:regress` call. Raises RequestError."""
    document = codec.parse_json_object(body)
    signature = servable.signature(codec.parse_signature_name(document))
    _check_signature(signature, method)
    examples = codec.object_array(_parse_examples(document, method))
    results = {"classify": _classifications, "regress": _regressions}[method]

    def encode(outputs: Mapping[str, Array]) -> bytes:
        return encoding.write_json({"results": results(outputs, len(examples))})

    return DecodedCall(signature.name, {_INPUTS: examples}, encode)


def _check_signature(signature: SignatureSpec, method: Method) -> None:
    wanted = {_SCORES, _CLASSES} if method == "classify" else {_OUTPUTS}
    if set(signature.inputs) == {_INPUTS} and signature.outputs and set(signature.outputs) <= wanted:
        if signature.inputs[_INPUTS].dtype == "DT_STRING":
            return
        raise invalid(
            f"signature {signature.name!r} takes {signature.inputs[_INPUTS].dtype} and not tf.Example; use :predict"
        )
    raise invalid(
        f"signature {signature.name!r} is not one for :{method}: it takes {', '.join(signature.inputs)} and gives "
        f"{', '.join(signature.outputs)}, expected {_INPUTS} and {' or '.join(sorted(wanted))}; use :predict"
    )


def _parse_examples(document: dict[str, Any], method: Method) -> list[bytes]:
    """Return serialised examples, each merged with the context that they share."""
    context = _serialize(document["context"]) if "context" in document else b""
    if "examples" not in document:
        raise invalid(f"When method is {method}, key 'examples' is expected and was not found")
    examples = document["examples"]
    if not isinstance(examples, list):
        raise invalid("Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid("'examples' value is an empty array")
    # Concatenated serialised messages are merged when parsed.
    return [context + _serialize(example) for example in examples]


def _serialize(example: Any) -> bytes:
    if not isinstance(example, dict):
        raise invalid(f"Example must be JSON object but got {codec.show(example)}")
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
            f'{{"b64": "..."}}: {codec.show(values)}'
        )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int)  # true and false are 1 and 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or codec.is_base64(value)


def _to_int64(name: str, value: int) -> int:
    if not _INT64_LIMITS.min <= value <= _INT64_LIMITS.max:
        raise invalid(f"Feature: {name} has {codec.show(value)}. Only int64_t is supported.")
    return int(value)


def _to_float(name: str, value: float) -> float:
    return value


_KINDS: tuple[tuple[str, Callable[[Any], bool], Callable[[str, Any], Any]], ...] = (
    ("int64_list", _is_integer, _to_int64),
    ("float_list", lambda value: isinstance(value, float), _to_float),
    ("bytes_list", _is_text, codec.decode_string),
)


def _regressions(outputs: Mapping[str, Array], num_examples: int) -> list[float]:
    values = outputs[_OUTPUTS]
    if values.shape not in ((num_examples,), (num_examples, 1)):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{list(values.shape)} for {num_examples} examples"
        )
    if values.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {values.dtype}")
    encoded: list[float] = encoding.encode_tensor(_OUTPUTS, values.reshape(num_examples))
    return encoded


def _classifications(outputs: Mapping[str, Array], num_examples: int) -> list[list[list[Any]]]:
    """Return [class, score] for every class of every example; "" or 0 if the signature lacks one."""
    for name, array in outputs.items():
        if array.ndim != 2 or len(array) != num_examples:
            raise invalid(
                f"Expected Tensor shape: [batch_size num_classes] but {name} has {list(array.shape)} for "
                f"{num_examples} examples"
            )
    if len({array.shape for array in outputs.values()}) > 1:
        raise invalid("Tensors class and score should match in dim_size(1).")
    shape = next(iter(outputs.values())).shape
    classes = encoding.encode_tensor(_CLASSES, outputs.get(_CLASSES, np.full(shape, b"", object)))
    scores = encoding.encode_tensor(_SCORES, outputs.get(_SCORES, np.zeros(shape, np.float32)))
    return [
        [[label, score] for label, score in zip(labels, row, strict=True)]
        for labels, row in zip(classes, scores, strict=True)
    ]
