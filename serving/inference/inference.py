"""One request to a model, the same for every API: what may block runs in threads, deadlines hold, runs are measured."""

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from serving.batching.request_queue import Answer, deadline_exceeded
from serving.models.model import Models
from serving.models.servable import Servable
from serving.monitoring.metrics import Metrics
from serving.protocol.tensors import Array

T = TypeVar("T")

# Less than this is decoded and encoded where the event loop runs: a thread would take longer to start with it.
_MAX_BYTES_ON_LOOP: Final = 32 * 2**10


class Inference:
    """The models, metrics and threads that the APIs of a server share. Its coroutines run on one event loop.

    Attributes:
        models: the models of the server.
        metrics: its metrics.
    """

    def __init__(self, models: Models, *, metrics: Metrics | None = None, num_codec_threads: int = 2) -> None:
        self.models = models
        self.metrics = Metrics() if metrics is None else metrics
        self._codec_threads = concurrent.futures.ThreadPoolExecutor(num_codec_threads, thread_name_prefix="codec")
        self._answers: set[Answer] = set()

    async def run(
        self,
        servable: Servable,
        signature_name: str | None,
        inputs: Mapping[str, Array],
        *,
        method: str = "predict",
        deadline_secs: float | None = None,
    ) -> dict[str, Array]:
        """Run a signature of a version that the caller holds (`Models.use`), and return its outputs by name.

        A run that has not begun is dropped when the awaiting task is cancelled or `deadline_secs`, in the time of
        `time.monotonic`, has passed.

        Args:
            servable: the version.
            signature_name: None or "" is the default one.
            inputs: by name, with the dtypes of their `TensorSpec`; strings are arrays of `bytes`.
            method: predict, classify or regress, for the metrics.
            deadline_secs: None waits without limit.

        Raises:
            RequestError: as `Servable.submit` does, or the deadline has passed.
        """
        start_secs = time.monotonic()
        answer = servable.submit(signature_name, inputs, deadline_secs=deadline_secs)
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)
        left_secs = None if deadline_secs is None else deadline_secs - start_secs
        try:
            async with asyncio.timeout(left_secs):
                outputs = await asyncio.wrap_future(answer)
        except TimeoutError:
            raise deadline_exceeded() from None
        self.metrics.ran(model=servable.model_name, method=method, latency_secs=time.monotonic() - start_secs)
        return outputs

    async def convert(self, convert: Callable[[], T], *, num_bytes: int) -> T:
        """Return `convert()`, which decodes or encodes some `num_bytes` and takes a while if they are many."""
        if num_bytes <= _MAX_BYTES_ON_LOOP:
            return convert()
        return await asyncio.get_running_loop().run_in_executor(self._codec_threads, convert)

    @property
    def is_computing(self) -> bool:
        """Return whether a model is running."""
        return any(answer.running() for answer in list(self._answers))

    def close(self) -> None:
        """Start no more conversions and runs; those that run are not awaited."""
        self._codec_threads.shutdown(wait=False, cancel_futures=True)
        for answer in list(self._answers):
            answer.cancel()


def num_bytes_of(tensors: Mapping[str, Array]) -> int:
    """Return about how much memory tensors take; strings count as much as a number."""
    return sum(array.nbytes for array in tensors.values())
