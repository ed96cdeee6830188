"""Map over chunks on threads if that is faster, with results in order."""

import collections
import concurrent.futures
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")

# About the time to decode 128 x 128 pixels, or to read a file over a network.
_WORTH_A_THREAD_SECS = 300e-6


def num_workers_of(num_workers: int) -> int:
    """Return `num_workers`, or, for 0, the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return num_workers or len(os.sched_getaffinity(0))
    return num_workers or os.cpu_count() or 1


def map_chunks_in_order(
    function: Callable[[Sequence[_T]], _R], chunks: Iterable[Sequence[_T]], num_workers: int
) -> Generator[_R, None, None]:
    """Map over chunks of items in order, on at most `num_workers` threads with a few more results in flight.

    Reading large files, decoding and hashing release the GIL. For items that take less than `_WORTH_A_THREAD_SECS`,
    threads would only wait for it, so chunks run on the calling thread until some items take longer.
    Close the generator if you leave it early.
    """
    remaining = iter(chunks)
    if num_workers > 1:
        is_first = True  # it includes one-time setup, so its time is not measured
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
        finally:  # on an error or Ctrl-C, wait for running chunks and drop queued ones
            pool.shutdown(wait=False, cancel_futures=True)
