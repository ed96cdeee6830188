"""Check that the outputs of a SavedModel agree: all others follow from the probabilities."""

import numpy as np

from export.files.signature import CLASS_ID, LABEL, NO_CLASS, PREDICTED, PROBABILITIES, STATUS, STATUS_OK, Signature
from export.gate.decisions import decide
from export.runtime.runtimes import Arrays


def find_answer_of_refused(outputs: Arrays) -> str | None:
    """Return what is wrong with the outputs for refused images, or None: they must not look like an answer."""
    refused = outputs[STATUS] != STATUS_OK.encode()
    status = outputs[STATUS][refused]
    has_class = (outputs[CLASS_ID][refused] != NO_CLASS) | outputs[PROBABILITIES][refused].any(axis=-1)
    if has_class.any():
        return f"an image with the {STATUS} {status[has_class][0].decode()!r} has a class all the same"
    return None


def find_contradiction(outputs: Arrays, signature: Signature) -> str | None:
    """Return what is wrong with the outputs for valid images, or None."""
    if STATUS in outputs:
        refused = np.flatnonzero(outputs[STATUS] != STATUS_OK.encode())
        if refused.size:
            return f"{STATUS} of an image that training reads is {outputs[STATUS][refused[0]].decode()!r}"
    probabilities, class_ids = outputs[PROBABILITIES], outputs[CLASS_ID]
    if not np.array_equal(class_ids, probabilities.argmax(axis=-1)):
        return f"{CLASS_ID} is not the index of the largest of {PROBABILITIES}"
    class_names = np.array([name.encode() for name in signature.class_names], object)
    wrong = np.flatnonzero(outputs[LABEL] != class_names[class_ids])
    if wrong.size:
        class_id = class_ids[wrong[0]]
        return (
            f"{LABEL} of class {class_id} is {outputs[LABEL][wrong[0]].decode()!r} where the signature says "
            f"{signature.class_names[class_id]!r}"
        )
    expected = decide(probabilities, signature.thresholds)
    if signature.thresholds is not None and not np.array_equal(outputs[PREDICTED], expected):
        return f"{PREDICTED} is not where {PROBABILITIES} reach the thresholds of the signature"
    return None
