"""Swap and roll back the version of a model under load, and count failed requests, wrong answers and memory.

    python benchmarks/version_swaps.py --swaps 100 --callers 16

`trainer serve` serves a base path with batching. Two versions of a model come and go: version V answers x + V, through
--weights-mib of weights. Half of the callers ask over REST and half over gRPC, without a pause, and check every answer.
A swap is over when the status of the new version is AVAILABLE and that of the old one END. The server's resident memory
is read after each swap. Exit status 1 if a request failed, an answer was wrong, or memory ends more than
--max-growth-mib above what it was after the first tenth of the swaps.
"""

import argparse
import asyncio
import pathlib
import shutil
import sys
import tempfile
import time
from typing import Any

# A file beside this one has the name of the package `serving`.
sys.path[:] = [entry for entry in sys.path if pathlib.Path(entry).resolve() != pathlib.Path(__file__).resolve().parent]

from trainer.system import tf_runtime

if __name__ == "__main__":
    tf_runtime.configure(use_gpus=False)

import aiohttp
import grpc
import numpy as np
import psutil
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from serving.load.server_process import server_process
from trainer.system.child_python import python_command

NAME, OLD, NEW = "adder", 1, 2
BATCHING = """max_batch_size { value: 16 }
batch_timeout_micros { value: 1000 }
max_enqueued_batches { value: 1000 }
num_batch_threads { value: 2 }
"""


def save_version(path: pathlib.Path, version: int, weights_mib: int) -> None:
    module = tf.Module()
    module.zeros = tf.Variable(tf.zeros([weights_mib * 2**18]))
    module.version = tf.Variable(float(version))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def add(x: Any) -> dict[str, Any]:
        return {"y": x + module.version + tf.reduce_sum(module.zeros)}

    tf.saved_model.save(module, str(path), signatures={"serving_default": add})


def command_for(base_path: pathlib.Path) -> list[str]:
    parameters = base_path.parent / "batching.config"
    parameters.write_text(BATCHING, encoding="utf-8")
    return python_command(
        "trainer",
        *("serve", str(base_path), "--port=0", "--grpc-port=0", "--json", "--file-system-poll-wait-seconds=1"),
        f"--batching-parameters-file={parameters}",
    )


class Callers:
    """Callers that ask until they are stopped, and what they saw."""

    def __init__(self) -> None:
        self.num_answers = 0
        self.failures: list[str] = []
        self.is_over = False

    async def ask_rest(self, http: aiohttp.ClientSession, url: str, number: int) -> None:
        async with http.post(f"{url}/v1/models/{NAME}:predict", json={"instances": [number, number + 0.5]}) as response:
            answer = await response.json()
        found = answer.get("predictions")
        if found not in ([number + v, number + 0.5 + v] for v in (OLD, NEW)):
            self.failures.append(f"REST {response.status}: {str(answer)[:200]}")

    async def ask_grpc(self, predict: Any, number: int) -> None:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = NAME
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array([number], np.float32)))
        try:
            answer = await predict(request)
        except grpc.aio.AioRpcError as e:
            self.failures.append(f"gRPC {e.code().name}: {e.details()}")
            return
        found = tf.make_ndarray(answer.outputs["y"]).tolist()
        if found != [number + answer.model_spec.version.value]:
            self.failures.append(f"gRPC: {found} for {number} of version {answer.model_spec.version.value}")

    async def run(self, url: str, target: str, num_callers: int) -> None:
        async with aiohttp.ClientSession() as http, grpc.aio.insecure_channel(target) as channel:
            predict = channel.unary_unary(
                "/tensorflow.serving.PredictionService/Predict",
                request_serializer=predict_pb2.PredictRequest.SerializeToString,
                response_deserializer=predict_pb2.PredictResponse.FromString,
            )

            async def call(index: int) -> None:
                number = 0
                while not self.is_over:
                    ask = self.ask_rest(http, url, number) if index % 2 else self.ask_grpc(predict, number)
                    try:
                        await ask
                    except aiohttp.ClientError as e:
                        self.failures.append(f"REST: {e!r}")
                    self.num_answers += 1
                    number = (number + 1) % 1000

            await asyncio.gather(*(call(index) for index in range(num_callers)))


async def wait_for(http: aiohttp.ClientSession, url: str, version: int, state: str) -> None:
    while True:
        async with http.get(f"{url}/v1/models/{NAME}/versions/{version}") as response:
            answer = await response.json()
        states = {int(s["version"]): s["state"] for s in answer.get("model_version_status", [])}
        if states.get(version, "END") == state:
            return
        await asyncio.sleep(0.02)


async def swap(args: argparse.Namespace, base: pathlib.Path, told: Any, process: psutil.Process) -> list[float]:
    callers, memory_mib = Callers(), []
    url = told["url"]
    calling = asyncio.create_task(callers.run(url, told["grpc"], args.callers))
    start_secs = time.monotonic()
    async with aiohttp.ClientSession() as http:
        for number in range(args.swaps):
            if number % 2 == 0:
                hidden = base.parent / "coming"
                await asyncio.to_thread(shutil.copytree, base.parent / "kept", hidden)
                hidden.rename(base / str(NEW))
                await wait_for(http, url, NEW, "AVAILABLE")
                await wait_for(http, url, OLD, "END")
            else:
                (base / str(NEW)).rename(base.parent / "going")
                await wait_for(http, url, OLD, "AVAILABLE")
                await wait_for(http, url, NEW, "END")
                await asyncio.to_thread(shutil.rmtree, base.parent / "going")
            memory_mib.append(process.memory_info().rss / 2**20)
            if (number + 1) % 10 == 0:
                print(
                    f"{number + 1} swaps, {callers.num_answers:,} requests, {len(callers.failures)} failed or wrong, "
                    f"{memory_mib[-1]:.0f} MiB",
                    flush=True,
                )
    callers.is_over = True
    await calling
    secs = time.monotonic() - start_secs
    print(f"{callers.num_answers / secs:,.0f} requests/s over {secs:.0f} s")
    for failure in callers.failures[:5]:
        print(failure)
    growth_mib = memory_mib[-1] - memory_mib[max(0, args.swaps // 10 - 1)]
    print(f"memory grew by {growth_mib:.0f} MiB after the first tenth; a version has {args.weights_mib} MiB of weights")
    sys.exit(bool(callers.failures) or growth_mib > args.max_growth_mib)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--weights-mib", type=int, default=32)
    parser.add_argument("--max-growth-mib", type=float, default=32.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        base = directory / NAME
        save_version(base / str(OLD), OLD, args.weights_mib)
        save_version(directory / "kept", NEW, args.weights_mib)
        with server_process(command_for(base)) as (told, process):
            asyncio.run(swap(args, base, told, psutil.Process(process.pid)))


if __name__ == "__main__":
    main()
