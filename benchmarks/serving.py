"""Measure `trainer serve` under batch-friendly traffic against the model in process and against usual services.

    python benchmarks/serving.py --rounds 5 --secs 4
    python benchmarks/serving.py --only pixels

The model is a MobileNetV2 at 96 px with random weights, exported as `trainer export` does it. Contenders take turns in
every round, each in a process of its own; idle ones use no processor.

    in process   the SavedModel's signature for image files, called in a loop with batches of --batch-size
    ours, gRPC   trainer serve with dynamic batching, 48 callers that send one JPEG each
    ours, REST   the same with base64 in JSON
    signature    a service that calls the loaded signature for each request in a thread pool, base64 in JSON
    predict      a service that decodes with Pillow and calls Keras's model.predict for each request: the usual one

The two services are written for Starlette, on which FastAPI is built and which does less for each request. The latency
of ours is measured at 70% of its own peak in an open loop (Poisson arrivals). `pixels` compares gRPC with our REST JSON
for pixels at batch 1 and 32, one caller. Exit status 1 if a goal is missed.
"""

import argparse
import asyncio
import base64
import concurrent.futures
import contextlib
import io
import json
import multiprocessing
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Final

# This file has the name of a package, which must not be looked for beside it.
sys.path[:] = [entry for entry in sys.path if pathlib.Path(entry).resolve() != pathlib.Path(__file__).resolve().parent]

from trainer.system import tf_runtime

if __name__ == "__main__":
    tf_runtime.configure(use_gpus=False)

import keras
import numpy as np
import PIL.Image
import tensorflow as tf

from export.convert.inference_model import InferenceModel
from export.convert.to_saved_model import NUM_WARMUP_IMAGES, write_saved_model
from export.files.signature import IMAGE_BYTES, IMAGES, SIGNATURE_IMAGE_BYTES, SIGNATURE_IMAGES, Signature
from export.runtime.samples import Batch
from serving.clients.connections import RemoteModel
from serving.load.generate import Load, Measurement, measure
from serving.load.senders import grpc_sender, rest_sender
from serving.load.server_process import server_process
from trainer.data.decode.geometry import Geometry
from trainer.system.child_python import python_command

SIZE_PX, NUM_CLASSES, NUM_IMAGES, NUM_CALLERS = 96, 100, 64, 48
MODEL = RemoteModel("mobilenet")
RIVALS = ("signature", "predict")
BATCHING: Final = """max_batch_size {{ value: {size} }}
batch_timeout_micros {{ value: 2000 }}
max_enqueued_batches {{ value: 1000 }}
num_batch_threads {{ value: {threads} }}
"""
GOALS = {
    "ours, gRPC / in process": 0.85,
    "ours, REST / predict": 1.5,
    "ours, REST / signature": 1.2,
    "pixels, batch 1: gRPC / REST": 1.3,
    "pixels, batch 32: gRPC / REST": 5.0,
}
MAX_P99_OVER_P50 = 3.0


def make_images() -> list[bytes]:
    """Real-looking pictures of several sizes: smooth noise, which compresses as photographs do."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(NUM_IMAGES):
        small = PIL.Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        side = int(random.integers(120, 240))
        buffer = io.BytesIO()
        small.resize((side, side), PIL.Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        images.append(buffer.getvalue())
    return images


def save_model(directory: pathlib.Path, images: list[bytes]) -> None:
    keras.utils.set_random_seed(0)
    backbone = keras.applications.MobileNetV2((SIZE_PX, SIZE_PX, 3), include_top=False, weights=None, pooling="avg")
    inputs = keras.Input((SIZE_PX, SIZE_PX, 3))
    logits = keras.layers.Dense(NUM_CLASSES, name="head")(backbone(inputs / 127.5 - 1.0))
    model = keras.Model(inputs, logits)
    model.save(directory / "model.keras")
    signature = Signature.of_classifier(
        model_name=MODEL.name,
        class_names=[f"class {i}" for i in range(NUM_CLASSES)],
        geometry=Geometry(image_size_px=SIZE_PX, resize="crop"),
    )
    pixels = np.stack([pixels_of(image) for image in images[:NUM_WARMUP_IMAGES]])
    warmup = Batch(images[:NUM_WARMUP_IMAGES], pixels, np.zeros(NUM_WARMUP_IMAGES, np.int64))
    version = directory / MODEL.name / "1"
    version.parent.mkdir()
    write_saved_model(InferenceModel(model, signature), signature, version, warmup)


def pixels_of(image: bytes) -> Any:
    with PIL.Image.open(io.BytesIO(image)) as picture:
        return np.asarray(picture.convert("RGB").resize((SIZE_PX, SIZE_PX), PIL.Image.Resampling.BILINEAR))


# What is measured in a process of its own


def run_in_process(directory: pathlib.Path, batch_size: int, secs: float) -> float:
    """Return images/s of the signature for image files in a loop."""
    loaded = tf.saved_model.load(str(directory / MODEL.name / "1"))
    call, images = loaded.signatures[SIGNATURE_IMAGE_BYTES], make_images()
    batches = [
        tf.constant([images[(start + i) % NUM_IMAGES] for i in range(batch_size)])
        for start in range(0, NUM_IMAGES, batch_size)
    ]
    for batch in batches:
        call(**{IMAGE_BYTES: batch})
    start_secs, num_batches = time.perf_counter(), 0
    while time.perf_counter() - start_secs < secs:
        call(**{IMAGE_BYTES: batches[num_batches % len(batches)]})["probabilities"].numpy()
        num_batches += 1
    return num_batches * batch_size / (time.perf_counter() - start_secs)


def serve_rival(directory: pathlib.Path, kind: str) -> None:
    """Serve the same requests as `:predict` does, without batching, until the process ends."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from serving.protocol import address

    model = keras.models.load_model(directory / "model.keras") if kind == "predict" else None
    loaded = tf.saved_model.load(str(directory / MODEL.name / "1")) if kind == "signature" else None

    def answer(instances: list[dict[str, str]]) -> list[list[float]]:
        encoded = [base64.b64decode(instance["b64"]) for instance in instances]
        if model is not None:
            pixels = np.stack([pixels_of(image) for image in encoded]).astype(np.float32)
            logits: list[list[float]] = model.predict(pixels, verbose=0).tolist()
            return logits
        assert loaded is not None
        outputs = loaded.signatures[SIGNATURE_IMAGE_BYTES](**{IMAGE_BYTES: tf.constant(encoded)})
        probabilities: list[list[float]] = outputs["probabilities"].numpy().tolist()
        return probabilities

    async def predict(request: Any) -> Any:
        document = await request.json()
        return JSONResponse({"predictions": await run_in_threadpool(answer, document["instances"])})

    answer([{"b64": base64.b64encode(image).decode()} for image in make_images()[:1]])
    path = f"/v1/models/{MODEL.name}:predict"
    app = Starlette(routes=[Route(path, predict, methods=["POST"])])
    listener = address.listen("127.0.0.1", 0)
    print(json.dumps({"url": address.url_of(listener)}), flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])


# The parent


def ours(directory: pathlib.Path, batch_size: int, threads: int) -> list[str]:
    parameters = directory / f"batching-{batch_size}.config"
    parameters.write_text(BATCHING.format(size=batch_size, threads=threads), encoding="utf-8")
    listening = ("--port=0", "--grpc-port=0", "--json")
    batching = f"--batching-parameters-file={parameters}"
    return python_command("trainer", "serve", str(directory / MODEL.name), *listening, batching)


class Client:
    """A process that makes load, so that the client and what measures do not share one interpreter lock."""

    def __init__(self) -> None:
        self._process = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def measure(self, *request: Any) -> Measurement:
        return self._process.submit(make_load, *request).result()

    def close(self) -> None:
        self._process.shutdown()


def make_load(api: str, address: str, load: Load, input_name: str, batch_size: int) -> Measurement:
    images = make_images()
    batches: list[Any] = [
        [images[(start + i) % NUM_IMAGES] for i in range(batch_size)] for start in range(0, NUM_IMAGES, batch_size)
    ]
    signature = SIGNATURE_IMAGE_BYTES
    if input_name == IMAGES:
        signature = SIGNATURE_IMAGES
        batches = [np.stack([pixels_of(image) for image in batch]).astype(np.float32) for batch in batches]

    async def run() -> Measurement:
        if api == "gRPC":
            async with grpc_sender(address, MODEL, signature, input_name, batches, timeout_secs=120) as send:
                return await measure(send, load)
        async with rest_sender(address, MODEL, signature, batches, timeout_secs=120) as send:
            return await measure(send, load)

    found = asyncio.run(run())
    assert found.num_answers and not found.errors, found.errors
    return found


def saturating(secs: float) -> Load:
    return Load(loop="closed", concurrency=NUM_CALLERS, secs=secs)


def measure_throughput(directory: pathlib.Path, client: Client, args: argparse.Namespace) -> dict[str, list[float]]:
    """Return images/s of each contender by round, and p99 over p50 of ours at 70% of its peak."""
    here = [sys.executable, __file__, f"--directory={directory}", f"--batch-size={args.batch_size}"]
    rates: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        server, _ = stack.enter_context(server_process(ours(directory, args.batch_size, args.threads)))
        rivals = {kind: stack.enter_context(server_process([*here, f"--serve={kind}"]))[0] for kind in RIVALS}
        for number in range(args.rounds):
            done = subprocess.run(
                [*here, f"--in-process={args.secs}"], capture_output=True, encoding="utf-8", check=True
            )
            found = {"in process": float(done.stdout)}
            for api, where in (("gRPC", server["grpc"]), ("REST", server["url"])):
                answer = client.measure(api, where, saturating(args.secs), IMAGE_BYTES, 1)
                found[f"ours, {api}"] = answer.requests_per_sec
            for kind, rival in rivals.items():
                answer = client.measure("REST", rival["url"], saturating(args.secs), IMAGE_BYTES, 1)
                found[kind] = answer.requests_per_sec
            gentle = Load(loop="open", rate=0.7 * found["ours, gRPC"], secs=2 * args.secs, seed=number)
            latencies = client.measure("gRPC", server["grpc"], gentle, IMAGE_BYTES, 1).latencies_ms
            found["p99 / p50"] = latencies["p99"] / latencies["p50"]
            print(f"round {number + 1}: " + ", ".join(f"{k} {v:.1f}" for k, v in found.items()), flush=True)
            for name, value in found.items():
                rates.setdefault(name, []).append(value)
    return rates


def measure_pixels(directory: pathlib.Path, client: Client, args: argparse.Namespace) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {}
    with server_process(ours(directory, 32, args.threads)) as (server, _):
        for number in range(args.rounds):
            for batch_size in (1, 32):
                for api, where in (("gRPC", server["grpc"]), ("REST", server["url"])):
                    load = Load(loop="closed", concurrency=1, secs=args.secs)
                    answer = client.measure(api, where, load, IMAGES, batch_size)
                    rates.setdefault(f"pixels, batch {batch_size}, {api}", []).append(answer.requests_per_sec)
            print(f"round {number + 1}: " + ", ".join(f"{k} {v[-1]:.1f}" for k, v in rates.items()), flush=True)
    return rates


def summarize(rates: dict[str, list[float]]) -> bool:
    """Print the median and range of each ratio, and return whether every goal is met."""
    met = True
    pairs = {}
    for name in GOALS:
        of, over = name.split(" / ")
        if of.startswith("pixels"):
            size = of.split(":")[0]
            of, over = f"{size}, gRPC", f"{size}, REST"
        if of in rates and over in rates:
            pairs[name] = [a / b for a, b in zip(rates[of], rates[over], strict=True)]
    for name, ratios in pairs.items():
        median = statistics.median(ratios)
        met &= median >= GOALS[name]
        print(f"{name}: {median:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), goal at least {GOALS[name]}")
    if "p99 / p50" in rates:
        spread = rates["p99 / p50"]
        met &= statistics.median(spread) <= MAX_P99_OVER_P50
        print(
            f"p99 / p50 at 70% of the peak: {statistics.median(spread):.2f} ({min(spread):.2f} to {max(spread):.2f}), "
            f"goal at most {MAX_P99_OVER_P50}"
        )
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=float, default=4.0, help="for each contender in each round")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2, help="num_batch_threads of ours")
    parser.add_argument("--only", choices=("throughput", "pixels"))
    parser.add_argument("--directory", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", choices=RIVALS, help=argparse.SUPPRESS)
    parser.add_argument("--in-process", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve_rival(args.directory, args.serve)
        return
    if args.in_process:
        print(run_in_process(args.directory, args.batch_size, args.in_process))
        return
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        save_model(directory, make_images())
        client = Client()
        rates: dict[str, list[float]] = {}
        if args.only != "pixels":
            rates |= measure_throughput(directory, client, args)
        if args.only != "throughput":
            rates |= measure_pixels(directory, client, args)
        client.close()
    sys.exit(not summarize(rates))


if __name__ == "__main__":
    main()
