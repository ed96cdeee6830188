"""Run signatures on tf.Examples: what they must take and give, the same for every API.

Requirements and messages follow tensorflow_serving/servables/tensorflow/classifier.cc, regressor.cc and util.cc.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np

from serving.protocol.status import invalid
from serving.protocol.tensors import Array, SignatureSpec

Method = Literal["classify", "regress"]

INPUTS: Final = "inputs"
_SCORES, _CLASSES, _OUTPUTS = "scores", "classes", "outputs"


class Classifications(NamedTuple):
    """For every class of every example, [examples, classes]: its label, b"" or its score, 0 if the model lacks one."""

    labels: Array
    scores: Array


def check_signature(signature: SignatureSpec, method: Method) -> None:
    """Raise RequestError (400) unless the signature takes tf.Examples and gives what `method` answers."""
    reason = _why_not(signature, method)
    if reason is not None:
        takes, gives = ", ".join(signature.inputs) or "nothing", ", ".join(signature.outputs) or "nothing"
        raise invalid(
            f"{reason}: signature {signature.name!r} is not one for :{method}: it takes {takes} and gives {gives}, "
            f"expected {INPUTS} and {'classes or scores' if method == 'classify' else _OUTPUTS}; use :predict"
        )
    if signature.inputs[INPUTS].dtype != "DT_STRING":
        raise invalid(
            f"signature {signature.name!r} takes {signature.inputs[INPUTS].dtype} and not tf.Example; use :predict"
        )


def _why_not(signature: SignatureSpec, method: Method) -> str | None:
    if len(signature.inputs) != 1:
        return "Expected one input Tensor."
    if method == "regress":
        if len(signature.outputs) != 1:
            return "Expected one output Tensor."
        if INPUTS not in signature.inputs:
            return "No regression inputs found in SignatureDef"
        return None if _OUTPUTS in signature.outputs else "No regression outputs found in SignatureDef"
    if len(signature.outputs) not in (1, 2):
        return f"Expected one or two output Tensors, found {len(signature.outputs)}"
    if INPUTS not in signature.inputs:
        return "No classification inputs found in SignatureDef"
    if not {_CLASSES, _SCORES} & set(signature.outputs):
        return 'Expected classification signature outputs to contain at least one of "classes" or "scores"'
    return None


def example_inputs(examples: Sequence[bytes], context: bytes = b"") -> dict[str, Array]:
    """Return the input of a signature: serialised tf.Examples, each merged with the `context` that they share."""
    merged = np.empty(len(examples), dtype=object)
    # Concatenated serialised messages are merged when parsed.
    merged[:] = [context + example for example in examples]
    return {INPUTS: merged}


def regressions(outputs: Mapping[str, Array], num_examples: int) -> Array:
    """Return the value of every example, float32. Raises RequestError (400) for outputs of another kind."""
    values = outputs[_OUTPUTS]
    if values.ndim not in (1, 2) or values.shape[1:] not in ((), (1,)):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{list(values.shape)} for {num_examples} examples"
        )
    if len(values) != num_examples:
        raise invalid(f"Input batch size did not match output batch size: {num_examples} vs. {len(values)}")
    if values.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {values.dtype}")
    return values.reshape(num_examples)


def classifications(outputs: Mapping[str, Array], num_examples: int) -> Classifications:
    """Return labels and scores of every example. Raises RequestError (400) for outputs of another kind."""
    labels, scores = outputs.get(_CLASSES), outputs.get(_SCORES)
    for name, array, dtype, told in (
        (_CLASSES, labels, object, "DT_STRING"),
        (_SCORES, scores, np.float32, "DT_FLOAT"),
    ):
        if array is None:
            continue
        if array.ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {list(array.shape)} for {name}")
        if array.dtype != dtype:
            raise invalid(f"Expected {name} Tensor of {told}. Got: {array.dtype}")
        if len(array) != num_examples:
            raise invalid(f"Expected {name} output batch size of {num_examples}. Got: {len(array)}")
    if labels is not None and scores is not None and labels.shape != scores.shape:
        raise invalid(
            f"Tensors class and score should match in dim_size(1). Got {labels.shape[1]} vs. {scores.shape[1]}"
        )
    given = labels if labels is not None else scores
    assert given is not None, "check_signature"
    return Classifications(
        labels=np.full(given.shape, b"", object) if labels is None else labels,
        scores=np.zeros(given.shape, np.float32) if scores is None else scores,
    )
