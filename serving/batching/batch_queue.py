"""The requests to one signature, collected into batches that a `BatchScheduler` runs."""

import collections
import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable, Hashable, Mapping

from serving.batching import joining
from serving.batching.clock import Clock
from serving.batching.observer import BatchObserver
from serving.batching.parameters import BatchingParameters
from serving.batching.request_queue import Answer, Run, deadline_exceeded, queue_is_full, too_many_bytes_wait
from serving.batching.requests import batch_size_of, check_outputs
from serving.protocol.status import Code, RequestError
from serving.protocol.tensors import Array


class _Request:
    """A request and its answer, which its parts make together."""

    def __init__(self, num_parts: int, added_secs: float, deadline_secs: float | None) -> None:
        self.added_secs = added_secs
        self.answer: Answer = concurrent.futures.Future()
        self._deadline_secs = deadline_secs
        self._lock = threading.Lock()
        self._has_begun = False
        self._outputs: dict[int, Mapping[str, Array]] = {}
        self._num_parts = num_parts

    def begin(self, now_secs: float) -> bool:
        """Return whether to run a part: not if the request was cancelled, is late, or another part failed."""
        with self._lock:
            if not self._has_begun:
                self._has_begun = True
                is_late = self._deadline_secs is not None and now_secs >= self._deadline_secs
                if self.answer.set_running_or_notify_cancel() and is_late:
                    self.answer.set_exception(deadline_exceeded())
            return not self.answer.done()

    def finish(self, part: int, outputs: Mapping[str, Array]) -> None:
        with self._lock:
            self._outputs[part] = outputs
            if len(self._outputs) == self._num_parts and not self.answer.done():
                self.answer.set_result(joining.concatenate([self._outputs[i] for i in range(self._num_parts)]))

    def fail(self, error: Exception) -> None:
        with self._lock:
            self._outputs = {}
            if not self.answer.done():
                self.answer.set_exception(error)


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """Some rows of a request; all of them unless it is larger than a batch."""

    request: _Request
    index: int
    inputs: Mapping[str, Array]
    size: int
    num_bytes: int


class Batch:
    """Parts of requests that can be joined, and when the oldest came."""

    def __init__(self, start_secs: float) -> None:
        self.start_secs = start_secs
        self.parts: list[_Part] = []
        self.num_places = 0

    def add(self, part: _Part) -> None:
        self.parts.append(part)
        self.num_places += _num_places(part.size)


class BatchQueue:
    """A `RequestQueue` whose requests are joined. A `BatchScheduler` makes it, owns its lock and runs its batches.

    Batches are formed as by TensorFlow's batching_util/shared_batch_scheduler.h: a request goes into the open batch if
    it fits, otherwise that batch is closed and a new one opened. A batch can run once it is closed or full, or
    `batch_timeout_micros` after its oldest request. Other than there, requests that cannot be joined, for their dtypes
    or shapes, have open batches of their own.
    """

    def __init__(
        self,
        run: Run,
        parameters: BatchingParameters,
        *,
        changed: threading.Condition,
        drained: threading.Condition,
        clock: Clock,
        observer: BatchObserver,
        on_drained: Callable[["BatchQueue"], None],
        max_waiting_bytes: int,
    ) -> None:
        """Create an empty queue.

        Args:
            run: runs the signature.
            parameters: sizes and times.
            changed: with the lock of the scheduler; notified when a batch can run or has to be waited for.
            drained: with the same lock; notified when a queue that is being closed gets empty.
            clock: the time.
            observer: told of requests and batches.
            on_drained: called by `close` when all is answered.
            max_waiting_bytes: refuse requests when those that wait take more; a single one is never refused.
        """
        self._run = run
        self._parameters = parameters
        self._limit = parameters.execution_batch_size
        self._timeout_secs = parameters.batch_timeout_micros / 1e6
        self._changed = changed
        self._drained = drained
        self._clock = clock
        self._observer = observer
        self._on_drained = on_drained
        self._max_waiting_bytes = max_waiting_bytes
        self._open: dict[Hashable, Batch] = {}  # the oldest first
        self._closed: collections.deque[Batch] = collections.deque()
        self._num_bytes = 0
        self._num_running = 0
        self._is_closing = False

    def submit(self, inputs: Mapping[str, Array], *, deadline_secs: float | None = None) -> Answer:
        size = batch_size_of(inputs, self._parameters.max_batch_size)
        key = joining.batch_key(inputs, pad_variable_length=self._parameters.pad_variable_length_inputs)
        num_bytes = joining.num_bytes_waiting(inputs)
        with self._changed:
            if self._is_closing:
                raise RequestError(Code.UNAVAILABLE, "The batch scheduling queue is closed; send the request again")
            sizes = self._make_room(key, size, num_bytes)
            request = _Request(len(sizes), self._clock.now_secs(), deadline_secs)
            start = 0
            for index, part_size in enumerate(sizes):
                rows = {name: array[start : start + part_size] for name, array in inputs.items()}
                self._add(key, _Part(request, index, rows, part_size, num_bytes * part_size // max(size, 1)))
                start += part_size
            self._changed.notify()
        self._observer.request_added(size)
        return request.answer

    def close(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            self._drained.wait_for(lambda: not (self._open or self._closed or self._num_running))
        self._on_drained(self)

    def take(self, now_secs: float) -> Batch | None:
        """Return the oldest batch that can run, for `run`; the caller holds the lock."""
        key, oldest = next(iter(self._open.items()), (None, None))
        # Not always the closed ones first, or under load those of another key would wait without end.
        if (
            oldest is not None
            and (self._is_closing or now_secs >= oldest.start_secs + self._timeout_secs)
            and (not self._closed or oldest.start_secs < self._closed[0].start_secs)
        ):
            self._closed.appendleft(self._open.pop(key))
        if not self._closed:
            return None
        batch = self._closed.popleft()
        self._num_bytes -= sum(part.num_bytes for part in batch.parts)
        self._num_running += 1
        return batch

    def due_secs(self) -> float | None:
        """Return when a batch can run, None if there is none; the caller holds the lock."""
        if self._closed:
            return self._closed[0].start_secs
        return next((batch.start_secs + self._timeout_secs for batch in self._open.values()), None)

    def run(self, batch: Batch) -> None:
        """Run what `take` returned and answer its requests; raises nothing."""
        now_secs = self._clock.now_secs()
        try:
            parts = [part for part in batch.parts if part.request.begin(now_secs)]
            if parts:
                waits_secs = [now_secs - part.request.added_secs for part in parts]
                self._observer.batch_taken(self._parameters.thread_pool_name, waits_secs)
                self._answer(parts)
        finally:
            with self._changed:
                self._num_running -= 1
                if self._is_closing:
                    self._drained.notify_all()

    def _make_room(self, key: Hashable, size: int, num_bytes: int) -> list[int]:
        """Return the sizes of the parts of a request, where there is room for all. Raises RequestError (503)."""
        num_batches = len(self._open) + len(self._closed)
        max_batches = self._parameters.max_enqueued_batches
        if num_batches and self._num_bytes + num_bytes > self._max_waiting_bytes:
            raise too_many_bytes_wait(self._num_bytes, self._max_waiting_bytes)
        room = self._limit - self._open[key].num_places if key in self._open else 0
        places = _num_places(size)
        if not self._parameters.enable_large_batch_splitting:
            if places > room and num_batches >= max_batches:
                raise queue_is_full(
                    f"currently {num_batches} batches enqueued and max_enqueued_batches is {max_batches}"
                )
            return [size]
        capacity = (max_batches - num_batches) * self._limit + room
        if places > capacity:
            raise queue_is_full(f"task size is {size} but scheduling capacity is only {capacity}")
        return joining.part_sizes(size, first=room, limit=self._limit) or [size]

    def _add(self, key: Hashable, part: _Part) -> None:
        batch = self._open.get(key)
        if batch is not None and batch.num_places + _num_places(part.size) > self._limit:
            self._close_batch(key)
            batch = None
        if batch is None:
            batch = self._open[key] = Batch(part.request.added_secs)
        batch.add(part)
        self._num_bytes += part.num_bytes
        if batch.num_places >= self._limit:
            self._close_batch(key)

    def _close_batch(self, key: Hashable) -> None:
        self._closed.append(self._open.pop(key))

    def _answer(self, parts: list[_Part]) -> None:
        try:
            outputs = self._run_joined(parts)
        except Exception as e:
            if len(parts) == 1:
                parts[0].request.fail(e)
                return
            # Whose values the model refused is not known: each by itself is answered or refused for its own.
            for part in parts:
                self._answer([part])
            return
        for part, rows in zip(parts, outputs, strict=True):
            part.request.finish(part.index, rows)

    def _run_joined(self, parts: list[_Part]) -> list[dict[str, Array]]:
        sizes = [part.size for part in parts]
        size = sum(sizes)
        padded_size = joining.round_up(size, self._parameters.allowed_batch_sizes) if size else 0
        self._observer.model_run(padded_size, padded_size - size)
        outputs = self._run(joining.join([part.inputs for part in parts], padded_size))
        check_outputs(outputs, padded_size)
        return joining.split(outputs, sizes)


def _num_places(size: int) -> int:
    # A request without rows takes the place of one, or endless many would go into a batch.
    return max(size, 1)
