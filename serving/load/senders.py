"""Requests to a model of a server, made once and sent many times: REST JSON, and gRPC."""

import base64
import contextlib
import json
import urllib.parse
from collections.abc import AsyncIterator, Sequence

import aiohttp
import grpc
import numpy as np

from serving.clients.connections import MAX_MESSAGE_BYTES, RemoteModel, fill_model_spec, make_target
from serving.load.generate import Send
from serving.protocol.tensors import Array
from trainer.errors import TrainerError


@contextlib.asynccontextmanager
async def rest_sender(
    address: str,
    model: RemoteModel,
    signature_name: str,
    batches: Sequence[Sequence[bytes] | Array],
    *,
    timeout_secs: float,
) -> AsyncIterator[Send]:
    """Give what posts one of `batches`, each encoded images or pixels, to `:predict` in row format."""

    def body_of(batch: Sequence[bytes] | Array) -> bytes:
        if isinstance(batch, np.ndarray):
            instances = batch.tolist()
        else:
            instances = [{"b64": base64.b64encode(image).decode()} for image in batch]
        return json.dumps({"signature_name": signature_name, "instances": instances}).encode()

    bodies = [body_of(batch) for batch in batches]
    url = f"{address.rstrip('/')}/v1/models/{urllib.parse.quote(model.name, safe='')}{model.path_suffix}:predict"
    # httpx, which our other clients use, spends longer on a request than a small model does once tens are open.
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=timeout_secs)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as http:

        async def send(number: int) -> None:
            async with http.post(url, data=bodies[number % len(bodies)]) as response:
                await response.read()
            if not response.ok:
                raise TrainerError(f"status {response.status}")

        yield send


@contextlib.asynccontextmanager
async def grpc_sender(
    address: str,
    model: RemoteModel,
    signature_name: str,
    input_name: str,
    batches: Sequence[Sequence[bytes] | Array],
    *,
    timeout_secs: float,
) -> AsyncIterator[Send]:
    """Give what calls PredictionService.Predict with one of `batches`."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    def request_of(batch: Sequence[bytes] | Array) -> bytes:
        request = predict_pb2.PredictRequest()
        fill_model_spec(request.model_spec, model)
        request.model_spec.signature_name = signature_name
        content = batch if isinstance(batch, np.ndarray) else np.array(batch, object)
        request.inputs[input_name].CopyFrom(tf.make_tensor_proto(content))
        serialized: bytes = request.SerializeToString()
        return serialized

    requests = [request_of(batch) for batch in batches]
    target, credentials = make_target(address)
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ]
    channel = (
        grpc.aio.insecure_channel(target, options)
        if credentials is None
        else grpc.aio.secure_channel(target, credentials, options)
    )
    async with channel:
        # Already serialised, and the answer is not parsed: the client's own work is not what is measured.
        predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")

        async def send(number: int) -> None:
            try:
                await predict(requests[number % len(requests)], timeout=timeout_secs)
            except grpc.aio.AioRpcError as e:
                raise TrainerError(e.code().name) from None

        yield send
