"""Refuse what TensorFlow Serving refuses if it batches, as in the cluster of `trainer manifests`."""

from collections.abc import Mapping

from serving.limits import too_many_examples
from serving.rest.signature_specs import Array
from serving.rest.status import Code, RequestError, invalid


def batch_size_of(inputs: Mapping[str, Array], max_batch_size: int) -> int:
    """Return the batch size of a request. Raises RequestError (400).

    The messages are TensorFlow Serving's (batching/batching_util.h), and TensorFlow's batch scheduler's.
    """
    if any(array.ndim == 0 for array in inputs.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in inputs.values()}
    if len(sizes) > 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    (size,) = sizes
    if size > max_batch_size:
        raise invalid(too_many_examples(size, max_batch_size))
    return size


def check_outputs(outputs: Mapping[str, Array], batch_size: int) -> None:
    """Raise RequestError (400) for outputs that batching could not split (batching/batching_session.cc)."""
    if any(array.ndim == 0 for array in outputs.values()):
        raise RequestError(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
    if any(len(array) != batch_size for array in outputs.values()):
        raise RequestError(
            Code.FAILED_PRECONDITION,
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
            "tensors",
        )
