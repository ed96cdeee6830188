"""Measure the images per second of each stage of the input pipeline, and find the one that limits it.

    ceiling    the decode function of the training stream on encoded bytes in memory, on all cores
    read       records by offset, in the order of training
    decode     records read and decoded
    pipeline   whole batches, as the training step gets them

The stages take turns of `secs`, so that other load on the machine affects all of them.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from trainer.data.dataset import records
from trainer.data.input.pipeline import Draw, TrainingStream, decoded_batches, read_payloads
from trainer.data.input.read_errors import as_data_errors

Stage = Literal["ceiling", "read", "decode", "pipeline"]
NUM_TURNS = 3
# Encoded images that the ceiling decodes over and over: more than a processor's caches hold.
_NUM_PRELOADED = 256
_MANY_STEPS = 2**40
# Part of a turn before it counts, in which buffers fill and tf.data finds its parallelism.
_WARM_UP = 0.5
# A stage that is this much of the ceiling of decoding is held back by nothing else.
_NEAR = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """Images per second, the median of `NUM_TURNS` turns, with `num_readers` concurrent reads."""

    num_readers: int
    read: float
    decode: float
    pipeline: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputReport:
    """The rates of all stages, and the one that limits the pipeline.

    Attributes:
        is_cached: Whether the pipeline reads decoded images from a cache and decodes nothing.
        limiting_stage: "decode", "read", "batch" (between decoding and the training step) or "gather" (from the cache).
    """

    num_cores: int
    ceiling: float
    is_cached: bool
    rates: list[Rates]
    limiting_stage: str
    explanation: str


def measure_input(stream: TrainingStream, *, num_readers: list[int], secs: float, num_cores: int) -> InputReport:
    """Measure the stages of `stream` in turns, all but the ceiling with each of `num_readers`.

    Raises:
        DataError: The dataset cannot be read.
    """
    batch_size = stream.division.per_replica_batch_size
    stages: dict[tuple[Stage, int], Any] = {("ceiling", 0): decode_ceiling(stream)}
    for readers in num_readers:
        of_readers = dataclasses.replace(stream, resources=dataclasses.replace(stream.resources, num_readers=readers))
        stages["read", readers] = _read(of_readers)
        stages["decode", readers] = _read_and_decode(of_readers)
        stages["pipeline", readers] = of_readers.dataset(0, _MANY_STEPS)
    turns = [{key: _rate(dataset, batch_size, secs) for key, dataset in stages.items()} for _ in range(NUM_TURNS)]
    medians = {key: statistics.median(turn[key] for turn in turns) for key in stages}
    rates = [
        Rates(
            num_readers=readers,
            read=medians["read", readers],
            decode=medians["decode", readers],
            pipeline=medians["pipeline", readers],
        )
        for readers in num_readers
    ]
    best = max(rates, key=lambda rate: rate.pipeline)
    is_cached = stream.pixels is not None
    limiting_stage, explanation = name_limit(best, medians["ceiling", 0], is_cached=is_cached)
    return InputReport(
        num_cores=num_cores,
        ceiling=medians["ceiling", 0],
        is_cached=is_cached,
        rates=rates,
        limiting_stage=limiting_stage,
        explanation=explanation,
    )


def name_limit(rates: Rates, ceiling: float, *, is_cached: bool) -> tuple[str, str]:
    """Return the stage that limits the pipeline, and a sentence that says why."""
    share = rates.pipeline / ceiling
    of_ceiling = f"the pipeline gives {share:.0%} of what the cores decode from memory"
    if is_cached:
        return "gather", f"decoded images come out of the cache: {of_ceiling}"
    if share >= _NEAR:
        return "decode", f"{of_ceiling}; only more cores, smaller images or a cache make it faster"
    if rates.read < ceiling and rates.read * _NEAR <= rates.decode:
        return "read", "records come from storage more slowly than the cores decode them; more readers may help"
    if rates.decode * _NEAR > rates.pipeline:
        return "batch", f"{of_ceiling}, while reading and decoding alone give {rates.decode / ceiling:.0%}"
    return "decode", f"{of_ceiling}; reading takes processor time from decoding"


def _rate(dataset: Any, batch_size: int, secs: float) -> float:
    # A new iterator for each turn: one that waits goes on filling its buffers, at the cost of whose turn it is.
    with as_data_errors():
        batches = iter(dataset)
        _pull(batches, secs * _WARM_UP)
        num_batches, elapsed = _pull(batches, secs)
    return num_batches * batch_size / elapsed


def _pull(batches: Iterator[Any], secs: float) -> tuple[int, float]:
    """Take batches for `secs`, at least one; return their number and the seconds that they took."""
    num_batches, started = 0, time.perf_counter()
    while True:
        next(batches)
        num_batches += 1
        if (elapsed := time.perf_counter() - started) >= secs:
            return num_batches, elapsed


def decode_ceiling(stream: TrainingStream) -> Any:
    """Return an endless dataset that decodes images in memory as `stream` does, and keeps one number of each."""
    num_examples = min(stream.reader.num_examples, _NUM_PRELOADED)
    encoded = [records.Example.from_payload(p).encoded for p in stream.reader.read(np.arange(num_examples))]
    visits = tf.data.Dataset.range(_MANY_STEPS)
    examples = tf.data.Dataset.from_tensor_slices((encoded, np.arange(num_examples))).repeat()

    def decode(visit: Any, encoded_and_example: tuple[Any, Any]) -> Any:
        encoded, example = encoded_and_example
        draw = Draw(example, visit, tf.ones([]), example, tf.zeros([0]))
        # One number of each image: handing pixels on is not decoding.
        return stream.decode(encoded, draw)[0, 0, 0]

    dataset = tf.data.Dataset.zip((visits, examples)).map(decode, tf.data.AUTOTUNE, deterministic=True)
    return stream.resources.apply(dataset.batch(stream.division.per_replica_batch_size))


def _draws(stream: TrainingStream) -> Any:
    return tf.data.Dataset.range(_MANY_STEPS).map(stream.draw)


def _read(stream: TrainingStream) -> Any:
    dataset = _draws(stream).map(
        lambda draw: tf.strings.length(read_payloads(stream.reader, draw.examples)),
        num_parallel_calls=stream.resources.num_readers,
        deterministic=True,
    )
    return stream.resources.apply(dataset)


def _read_and_decode(stream: TrainingStream) -> Any:
    def decode(encoded: Any, draw: Draw) -> Any:
        return stream.decode(encoded, draw)[:1, :1]

    return stream.resources.apply(decoded_batches(_draws(stream), stream.reader, decode, stream.resources))
