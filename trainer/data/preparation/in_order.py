"""Work on threads whose results come in order."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def num_workers_of(num_workers: int) -> int:
    """`num_workers`, or one for each core that this process may use, for 0."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return num_workers or len(os.sched_getaffinity(0))
    return num_workers or os.cpu_count() or 1


def map_in_order(function: Callable[[_T], _R], items: Iterable[_T], num_workers: int) -> Generator[_R, None, None]:
    """`map` on `num_workers` threads; a few results more than that are in flight. Close it where it is left early.

    Threads are enough: reading, Pillow, TensorFlow and hashing work outside the interpreter's lock.
    """
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
