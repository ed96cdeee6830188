"""Refuse what TensorFlow Serving refuses if it batches, as in the cluster of `trainer manifests`."""

from collections.abc import Mapping

from serving.batching.request_queue import MakeQueue, RequestQueue, Run, UnbatchedQueue
from serving.protocol.limits import too_many_examples
from serving.protocol.status import Code, RequestError, invalid
from serving.protocol.tensors import Array


def batch_size_of(inputs: Mapping[str, Array], max_batch_size: int) -> int:
    """Return the batch size of a request. Raises RequestError (400).

    The messages are TensorFlow Serving's (batching/batching_util.h), and TensorFlow's batch scheduler's.
    """
    if not inputs:
        raise invalid("Batching Run() must have at least one input tensor")
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


def one_by_one(*, num_threads: int = 4, max_batch_size: int | None = None) -> MakeQueue:
    """Return what makes queues that do not batch, and refuse what a cluster that does would refuse.

    Args:
        num_threads: how many requests of a signature run at the same time.
        max_batch_size: the most examples in a request; None checks nothing.
    """

    def make(run: Run, model: str, signature: str) -> RequestQueue:
        def run_checked(inputs: Mapping[str, Array]) -> dict[str, Array]:
            if max_batch_size is None:
                return run(inputs)
            batch_size = batch_size_of(inputs, max_batch_size)
            outputs = run(inputs)
            check_outputs(outputs, batch_size)
            return outputs

        return UnbatchedQueue(run_checked, name=f"{model}-{signature}", num_threads=num_threads)

    return make
