"""Make load on a server and time every answer: closed loop and open loop.

In a closed loop a number of callers each wait for their answer before they ask again: it finds the highest throughput.
In an open loop requests arrive when they arrive, by a Poisson process, whether or not earlier ones were answered; each
is timed from its arrival, so that a server that falls behind cannot hide it (Schroeder, Wierman and Harchol-Balter,
"Open Versus Closed", NSDI 2006).
"""

import asyncio
import collections
import dataclasses
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Literal

import numpy as np

# Sends the request of a number, and raises if it is not answered well.
Send = Callable[[int], Awaitable[None]]

QUANTILES: Final = (0.5, 0.9, 0.95, 0.99, 0.999)
# Requests of an open loop that wait for an answer; beyond it the client itself would be what is measured.
_MAX_OPEN = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """A load on a server.

    Attributes:
        loop: closed or open.
        concurrency: callers of a closed loop.
        rate: requests/s of an open loop, on average.
        secs: how long requests are made, after `warm_up_secs` that are not counted.
        seed: of the arrivals.
    """

    loop: Literal["closed", "open"]
    concurrency: int = 1
    rate: float = 0.0
    secs: float = 5.0
    warm_up_secs: float = 1.0
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """The answers and latencies of a server under a load.

    Attributes:
        load: what was asked.
        num_answers: good answers of requests that arrived after the warm-up.
        secs: from the end of the warm-up to the last answer.
        latencies_ms: latency by quantile, such as "p99"; empty without an answer.
        errors: how often each kind of error came.
    """

    load: Load
    num_answers: int
    secs: float
    latencies_ms: dict[str, float]
    errors: dict[str, int]

    @property
    def requests_per_sec(self) -> float:
        return self.num_answers / self.secs if self.secs > 0 else 0.0


class _Record:
    """Answers and errors, of requests that arrive from `counted_from_secs` on."""

    def __init__(self, counted_from_secs: float) -> None:
        self.counted_from_secs = counted_from_secs
        self.last_secs = counted_from_secs
        self.latencies_secs: list[float] = []
        self.errors: collections.Counter[str] = collections.Counter()

    async def send(self, send: Send, number: int, arrived_secs: float) -> None:
        error: str | None = None
        try:
            await send(number)
        except Exception as e:
            error = f"{type(e).__name__}: {e}".splitlines()[0]
        now_secs = time.monotonic()
        if arrived_secs < self.counted_from_secs:
            return
        self.last_secs = max(self.last_secs, now_secs)
        if error is None:
            self.latencies_secs.append(now_secs - arrived_secs)
        else:
            self.errors[error] += 1

    def measurement(self, load: Load) -> Measurement:
        secs = self.latencies_secs
        latencies = {f"p{100 * q:g}": float(np.quantile(secs, q)) * 1e3 for q in QUANTILES} if secs else {}
        return Measurement(
            load=load,
            num_answers=len(secs),
            secs=self.last_secs - self.counted_from_secs,
            latencies_ms=latencies,
            errors=dict(self.errors.most_common()),
        )


async def measure(send: Send, load: Load) -> Measurement:
    """Make `load` with `send`, and return what came back.

    Requests are numbered from 0, so that `send` can choose what to send. Errors are counted, never raised.
    """
    start_secs = time.monotonic()
    record = _Record(start_secs + load.warm_up_secs)
    end_secs = record.counted_from_secs + load.secs
    if load.loop == "closed":
        numbers = iter(range(2**62))
        callers = (_call_until(end_secs, send, numbers, record) for _ in range(load.concurrency))
        await asyncio.gather(*callers)
    else:
        await _arrive_until(end_secs, start_secs, send, load, record)
    return record.measurement(load)


async def _call_until(end_secs: float, send: Send, numbers: Iterator[int], record: _Record) -> None:
    while (now_secs := time.monotonic()) < end_secs:
        await record.send(send, next(numbers), now_secs)


async def _arrive_until(end_secs: float, start_secs: float, send: Send, load: Load, record: _Record) -> None:
    arrivals = random.Random(load.seed)  # noqa: S311 (times, no secrets)
    arrives_secs, number = start_secs, 0
    async with asyncio.TaskGroup() as waiting:
        open_places = asyncio.Semaphore(_MAX_OPEN)
        while True:
            arrives_secs += arrivals.expovariate(load.rate)
            if arrives_secs >= end_secs:
                return
            await asyncio.sleep(max(0.0, arrives_secs - time.monotonic()))
            await open_places.acquire()
            task = waiting.create_task(record.send(send, number, arrives_secs))
            task.add_done_callback(lambda _: open_places.release())
            number += 1
