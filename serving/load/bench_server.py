"""Measure a server that has loaded an export under several loads, one after the other."""

import asyncio
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from export.files.read_file import StrictModel
from serving.clients.connections import RemoteModel
from serving.load.generate import Load, Measurement, Send, measure
from serving.load.senders import grpc_sender, rest_sender
from serving.protocol.address import parse_address
from serving.verification.expectation import Expectation
from trainer.errors import UsageError

_NUM_BATCHES = 16


class LoadResult(StrictModel):
    """The result of one load, see `Load` and `Measurement`."""

    api: Literal["REST", "gRPC"]
    loop: Literal["closed", "open"]
    concurrency: int | None
    rate: float | None
    requests_per_sec: float
    images_per_sec: float
    latencies_ms: dict[str, float]
    num_answers: int
    errors: dict[str, int]


class ServerBenchmark(StrictModel):
    """The answer of `trainer bench serve`."""

    schema_version: Literal[1] = 1
    model: str
    input: str
    batch_size: int
    results: list[LoadResult]

    def answer(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def bench_server(
    export_dir: pathlib.Path,
    loads: Sequence[Load],
    *,
    server: str | None,
    grpc: str | None,
    input_name: str,
    batch_size: int,
    timeout_secs: float,
    on_result: Callable[[LoadResult], None] = lambda result: None,
) -> ServerBenchmark:
    """Make each load on each API, with the golden images of an export as requests.

    Args:
        export_dir: as `trainer export` wrote it.
        loads: one after the other.
        server: the REST API as in `verify_server`, or None.
        grpc: the gRPC API, or None.
        input_name: image_bytes or images.
        batch_size: images in a request.
        timeout_secs: for one answer.
        on_result: called with each result as it is there.

    Raises:
        ArtifactError: `export_dir` is no export with a SavedModel.
        UsageError: an address is none, or the model has no such input.
    """
    expected = Expectation.load(export_dir)
    address = parse_address(server) if server is not None else None
    name = address.model if address and address.model else expected.signature.model_name
    model = RemoteModel(name, address.version if address else None, address.label if address else None)
    answers = next((a for a in expected.answers if a.input_name == input_name), None)
    if answers is None:
        inputs = ", ".join(a.input_name for a in expected.answers)
        raise UsageError(f"the model has no input {input_name!r}; give --input one of: {inputs}")
    rows = np.arange(_NUM_BATCHES * batch_size).reshape(_NUM_BATCHES, batch_size) % len(answers.probabilities)
    batches = [expected.values_of(answers, row) for row in rows]

    async def run() -> list[LoadResult]:
        results = []

        async def make(api: Literal["REST", "gRPC"], send: Send) -> None:
            for load in loads:
                results.append(_result(api, await measure(send, load), batch_size))
                on_result(results[-1])

        if address is not None:
            signature = answers.signature_name
            async with rest_sender(address.server, model, signature, batches, timeout_secs=timeout_secs) as send:
                await make("REST", send)
        if grpc is not None:
            async with grpc_sender(
                grpc, model, answers.signature_name, input_name, batches, timeout_secs=timeout_secs
            ) as send:
                await make("gRPC", send)
        return results

    return ServerBenchmark(model=name, input=input_name, batch_size=batch_size, results=asyncio.run(run()))


def _result(api: Literal["REST", "gRPC"], found: Measurement, batch_size: int) -> LoadResult:
    is_closed = found.load.loop == "closed"
    return LoadResult(
        api=api,
        loop=found.load.loop,
        concurrency=found.load.concurrency if is_closed else None,
        rate=None if is_closed else found.load.rate,
        requests_per_sec=found.requests_per_sec,
        images_per_sec=found.requests_per_sec * batch_size,
        latencies_ms=found.latencies_ms,
        num_answers=found.num_answers,
        errors=found.errors,
    )
