"""The interface of a queue of requests to one signature, and the queue that runs them one by one."""

import concurrent.futures
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from serving.batching.joining import num_bytes_waiting
from serving.protocol.status import Code, RequestError
from serving.protocol.tensors import Array

Run = Callable[[Mapping[str, Array]], dict[str, Array]]
Answer = concurrent.futures.Future[dict[str, Array]]

# The most that the waiting requests to one signature take, however large each is: several of the largest bodies.
MAX_WAITING_BYTES: Final = 512 * 2**20


class RequestQueue(Protocol):
    """The requests to one signature of one version, between the APIs and the model. Thread-safe."""

    def submit(self, inputs: Mapping[str, Array], *, deadline_secs: float | None = None) -> Answer:
        """Add a request, and return the future of its outputs by name.

        A future that is cancelled before its run starts is dropped; so is one whose `deadline_secs`, in the time of
        `time.monotonic`, has passed, with DEADLINE_EXCEEDED.

        Raises:
            RequestError: the request cannot be added, since the queue is full or closed or the inputs do not fit.
        """

    def close(self) -> None:
        """Refuse new requests, answer those that were added, and end the threads."""


# From what runs a signature, and the names of its model and of the signature.
MakeQueue = Callable[[Run, str, str], RequestQueue]


class UnbatchedQueue:
    """Runs each request by itself, `num_threads` at a time; at most `max_waiting` others wait.

    Nor may those that run or wait take more than `max_waiting_bytes`; a single one is never refused.
    """

    def __init__(
        self,
        run: Run,
        *,
        name: str,
        num_threads: int = 4,
        max_waiting: int = 1000,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self._run = run
        self._max_requests = num_threads + max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._lock = threading.Lock()
        self._num_requests = 0
        self._num_bytes = 0
        self._threads = concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix=name)

    def submit(self, inputs: Mapping[str, Array], *, deadline_secs: float | None = None) -> Answer:
        num_bytes = num_bytes_waiting(inputs)
        with self._lock:
            if self._num_requests >= self._max_requests:
                raise queue_is_full(f"currently {self._num_requests} requests run or wait")
            if self._num_requests and self._num_bytes + num_bytes > self._max_waiting_bytes:
                raise too_many_bytes_wait(self._num_bytes, self._max_waiting_bytes)
            self._num_requests += 1
            self._num_bytes += num_bytes

        def leave(_: Answer) -> None:
            with self._lock:
                self._num_requests -= 1
                self._num_bytes -= num_bytes

        answer = self._threads.submit(self._run_in_time, inputs, deadline_secs)
        answer.add_done_callback(leave)
        return answer

    def close(self) -> None:
        self._threads.shutdown(wait=True)

    def _run_in_time(self, inputs: Mapping[str, Array], deadline_secs: float | None) -> dict[str, Array]:
        if deadline_secs is not None and time.monotonic() >= deadline_secs:
            raise deadline_exceeded()
        return self._run(inputs)


def queue_is_full(reason: str) -> RequestError:
    """Return the error of a full queue (HTTP 503), with the message of TensorFlow's batch scheduler."""
    return RequestError(
        Code.UNAVAILABLE, f"The batch scheduling queue to which this task was submitted is full; {reason}"
    )


def too_many_bytes_wait(num_bytes: int, limit: int) -> RequestError:
    """Return the error of a queue whose requests take all the memory that they may."""
    return queue_is_full(f"the requests that wait take {num_bytes} bytes, and at most {limit} may")


def deadline_exceeded() -> RequestError:
    """Return the error of a request whose deadline passed before its run (HTTP 504)."""
    return RequestError(Code.DEADLINE_EXCEEDED, "the deadline of the request passed before the model could run it")
