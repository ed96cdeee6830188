"""Work on threads, where they help, whose results come in order."""

import collections
import concurrent.futures
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")

# Such as the decoding of 128 x 128 pixels, or a file that comes over a network.
_WORTH_A_THREAD_SECS = 300e-6


def num_workers_of(num_workers: int) -> int:
    """`num_workers`, or one for each core that this process may use, for 0."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return num_workers or len(os.sched_getaffinity(0))
    return num_workers or os.cpu_count() or 1


def map_chunks_in_order(
    function: Callable[[Sequence[_T]], _R], chunks: Iterable[Sequence[_T]], num_workers: int
) -> Generator[_R, None, None]:
    """`map` over chunks of items, on at most `num_workers` threads; a few results more than that are in flight.

    Reading large files, decoding and hashing work outside the interpreter's lock. For items that take less than
    `_WORTH_A_THREAD_SECS`, threads only wait for it in turns: those are done here, until some take longer.
    Close the generator where it is left early.
    """
    remaining = iter(chunks)
    if num_workers > 1:
        is_first = True  # it sets up what the others use, and says nothing
        for chunk in remaining:
            started = time.perf_counter()
            result = function(chunk)
            secs = time.perf_counter() - started
            yield result
            if not is_first and secs > _WORTH_A_THREAD_SECS * len(chunk):
                break
            is_first = False
        yield from _map_on_threads(function, remaining, num_workers)
    else:
        yield from map(function, remaining)


def _map_on_threads(function: Callable[[_T], _R], items: Iterable[_T], num_workers: int) -> Generator[_R, None, None]:
    pending: collections.deque[concurrent.futures.Future[_R]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= num_workers + 2:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # an error or Ctrl-C waits for what is running, not for what is queued
            pool.shutdown(wait=False, cancel_futures=True)
