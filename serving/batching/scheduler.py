"""The threads that run the batches of a model's queues, one pool for all of them."""

import threading
from typing import Final

from serving.batching.batch_queue import Batch, BatchQueue
from serving.batching.clock import Clock
from serving.batching.observer import BatchObserver, NoObserver
from serving.batching.parameters import BatchingParameters
from serving.batching.request_queue import MAX_WAITING_BYTES, Run

_CLOCK: Final = Clock()
_NO_OBSERVER: Final = NoObserver()


class BatchScheduler:
    """Runs the batches of its queues on `num_batch_threads` threads, the queues in turn. Thread-safe.

    TensorFlow's batching_util/shared_batch_scheduler.h: a free thread takes the next batch that can run. Threads start
    with the first queue and end with the last.
    """

    def __init__(
        self,
        parameters: BatchingParameters,
        *,
        observer: BatchObserver = _NO_OBSERVER,
        clock: Clock = _CLOCK,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self._observer = observer
        self._max_waiting_bytes = max_waiting_bytes  # of each queue
        self._parameters = parameters
        self._clock = clock
        lock = threading.Lock()
        # Two conditions, since each notification is for one thread: it must not reach who waits for something else.
        self._changed = threading.Condition(lock)
        self._drained = threading.Condition(lock)
        self._queues: list[BatchQueue] = []  # the next to be asked first
        self._threads: set[threading.Thread] = set()
        self._has_timekeeper = False

    def add_queue(self, run: Run, name: str) -> BatchQueue:
        """Return the queue of a signature; its `close` takes it away. `name` is for threads, if it is the first."""
        queue = BatchQueue(
            run,
            self._parameters,
            changed=self._changed,
            drained=self._drained,
            clock=self._clock,
            observer=self._observer,
            on_drained=self._remove_queue,
            max_waiting_bytes=self._max_waiting_bytes,
        )
        with self._changed:
            self._queues.append(queue)
            for index in range(len(self._threads), self._parameters.num_batch_threads):
                # A daemon: a process that ends without closing its queues must not wait for them.
                thread = threading.Thread(target=self._work, name=f"{name}-batch-{index}", daemon=True)
                self._threads.add(thread)
                thread.start()
        return queue

    def _remove_queue(self, queue: BatchQueue) -> None:
        with self._changed:
            if queue not in self._queues:
                return  # closed twice
            self._queues.remove(queue)
            if self._queues:
                return
            threads = set(self._threads)
            self._changed.notify_all()
            self._drained.wait_for(lambda: self._queues or not self._threads)
            ended = threads - self._threads
        for thread in ended:
            thread.join()

    def _work(self) -> None:
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        """Run one batch, and keep no reference to it while waiting for the next; False if the thread shall end."""
        with self._changed:
            while (taken := self._take()) is None:
                if not self._queues:
                    self._threads.discard(threading.current_thread())
                    self._drained.notify_all()
                    return False
                self._wait()
            if self._next_due_secs() is not None:
                self._changed.notify()  # another thread runs the next batch, or waits for its time
        queue, batch = taken
        queue.run(batch)
        return True

    def _take(self) -> tuple[BatchQueue, Batch] | None:
        now_secs = self._clock.now_secs()
        for index, queue in enumerate(self._queues):
            batch = queue.take(now_secs)
            if batch is not None:
                self._queues = self._queues[index + 1 :] + self._queues[: index + 1]
                return queue, batch
        return None

    def _wait(self) -> None:
        """Wait for a change; one of the threads, the timekeeper, also for the time of the next batch.

        Were it all of them, all would wake up for each batch.
        """
        due_secs = self._next_due_secs()
        if due_secs is None or self._has_timekeeper:
            self._clock.wait(self._changed, None)
            return
        self._has_timekeeper = True
        try:
            self._clock.wait(self._changed, max(due_secs - self._clock.now_secs(), 0))
        finally:
            self._has_timekeeper = False

    def _next_due_secs(self) -> float | None:
        return min((due for queue in self._queues if (due := queue.due_secs()) is not None), default=None)
