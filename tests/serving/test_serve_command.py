"""`trainer serve`: what it prints, how it stops, and how it refuses to start."""

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from brightness_export import jpeg
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import prediction_service_pb2_grpc
from test_rpc import arrays, predict_request

from serving.models.model import Model, Models
from serving.protocol import address
from serving.server import local_server
from trainer.cli.serve import serve
from trainer.errors import ArtifactError, DeviceError

# The command alone and not `trainer.cli.app`, whose imports belong to the other commands' tests.
_PROGRAM = """
import sys, typer
from trainer.cli import serve
from trainer.errors import TrainerError
app = typer.Typer(add_completion=False)
app.command()(serve.serve)
app.command()(serve.manifests)
try:
    app()
except TrainerError as e:
    sys.exit(f"{type(e).__name__} {e.exit_status}: {e}")
"""


def start(*arguments: str | pathlib.Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    )


@contextlib.contextmanager
def serving(*arguments: str | pathlib.Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The process, and the answer that it printed once it accepted connections."""
    process = start(*arguments, "--port", "0", "--grpc-port", "0", "--json")
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] != "}\n":
            line = process.stdout.readline()
            assert line, process.communicate()
            lines.append(line)
        yield process, json.loads("".join(lines))
    finally:
        process.kill()
        process.communicate()


def test_sigterm_lets_the_requests_in_flight_finish_and_ends_with_status_0(
    export_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    answers: list[httpx.Response] = []
    with serving(export_dir) as (process, told), httpx.Client(base_url=told["url"], timeout=600) as http:
        assert told["versions"] == [10]
        assert predicts_with_the_printed_line(told["curl"], tmp_path)
        assert is_healthy(told["grpc"])

        def predict_slowly() -> None:
            body = {"signature_name": "count", "instances": [150_000]}
            answers.append(httpx.post(f"{told['url']}/v1/models/brightness:predict", json=body, timeout=600))

        request = threading.Thread(target=predict_slowly)
        request.start()
        while "serving_requests_in_progress{} 1\n" not in http.get("/monitoring/prometheus/metrics").text:
            assert request.is_alive()
        assert not answers
        metrics = http.get("/monitoring/prometheus/metrics").text
        assert ":tensorflow:serving:batching_session:input_batch_size_count{} " in metrics, "an export is batched"
        http.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=600) == 0
        request.join(timeout=600)
    (answer,) = answers
    assert answer.status_code == 200
    assert len(answer.json()["predictions"]) == 1


def predicts_with_the_printed_line(curl: str, tmp_path: pathlib.Path) -> bool:
    image = tmp_path / "IMAGE.jpg"
    image.write_bytes(jpeg(255))
    shell = subprocess.run(["sh", "-c", curl], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=True)
    return bool(json.loads(shell.stdout)["predictions"][0]["label"] == "bright")


def serve_until_stopped(model: Any, client: Callable[[str, int], None], **limits: Any) -> bool:
    """Serves in this thread, where signals arrive, while `client` runs in another one."""
    with address.listen("127.0.0.1", 0) as listener:
        host, port = listener.getsockname()
        thread = threading.Thread(target=client, args=(host, port))
        try:
            return local_server.run(Models(model), listener, on_ready=thread.start, **limits)
        finally:
            thread.join()


def test_a_call_over_grpc_in_flight_is_answered_and_new_ones_are_refused(
    model: Model, capfd: pytest.CaptureFixture[str]
) -> None:
    answers: list[Any] = []

    def client(host: str, port: int) -> None:
        with grpc.insecure_channel(target) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            call = stub.Predict.future(predict_request("other", {"num_iterations": np.int64([150_000])}, "count"))
            wait_for_upload(host, port)
            os.kill(os.getpid(), signal.SIGTERM)
            while is_healthy(target):
                time.sleep(0.02)
            answers.append(call.result(timeout=600))

    with address.listen("127.0.0.1", 0, option="--grpc-port") as rpc_listener:
        target = address.target_of(rpc_listener)
        assert serve_until_stopped(model, client, rpc_listener=rpc_listener, shutdown_secs=600)
    (answer,) = answers
    assert arrays(answer)["value"].shape == (1,)
    assert capfd.readouterr().err == ""


def is_healthy(target: str) -> bool:
    with grpc.insecure_channel(target) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=600)
        except grpc.RpcError as e:
            assert e.code() is grpc.StatusCode.UNAVAILABLE
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_a_call_over_grpc_that_does_not_end_is_left_behind(model: Model) -> None:
    codes: list[grpc.StatusCode] = []

    def client(host: str, port: int) -> None:
        with grpc.insecure_channel(target) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            call = stub.Predict.future(predict_request("other", {"num_iterations": np.int64([300_000])}, "count"))
            wait_for_upload(host, port)
            os.kill(os.getpid(), signal.SIGTERM)
            codes.append(call.code())

    with address.listen("127.0.0.1", 0, option="--grpc-port") as rpc_listener:
        target = address.target_of(rpc_listener)
        assert not serve_until_stopped(model, client, rpc_listener=rpc_listener, shutdown_secs=0)
    assert codes[0] in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


@pytest.fixture(scope="module")
def model(export_dir: pathlib.Path) -> Model:
    model = Model(name="other", base_path=export_dir / "saved_model" / "brightness")
    model.load()
    return model


def post_head(num_bytes: int) -> bytes:
    return f"POST /v1/models/other:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {num_bytes}\r\n\r\n".encode()


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    while chunk := connection.recv(65536):
        answer += chunk
    return answer


def wait_for_upload(host: str, port: int) -> None:
    while (
        "serving_requests_in_progress{} 1\n"
        not in httpx.get(f"http://{host}:{port}/monitoring/prometheus/metrics").text
    ):
        time.sleep(0.02)


def test_ctrl_c_refuses_new_connections_while_it_finishes(model: Model) -> None:
    answers: list[bytes] = []

    def client(host: str, port: int) -> None:
        # A request that is not whole yet keeps the server up, so that there is something to observe.
        with socket.create_connection((host, port)) as half:
            body = b'{"signature_name": "count", "instances": [1]}'
            half.sendall(post_head(len(body)) + body[:10])
            wait_for_upload(host, port)
            os.kill(os.getpid(), signal.SIGINT)
            while accepts_connections(host, port):
                time.sleep(0.05)
            half.sendall(body[10:])
            answers.append(read_all(half))

    assert serve_until_stopped(model, client, upload_grace_secs=600, shutdown_secs=600)
    (answer,) = answers
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"predictions"' in answer


def test_an_upload_that_is_stuck_does_not_hold_up_the_end(model: Model, capfd: pytest.CaptureFixture[str]) -> None:
    answers: list[bytes] = []

    def client(host: str, port: int) -> None:
        with socket.create_connection((host, port)) as stuck:
            stuck.sendall(post_head(1000) + b"half")
            wait_for_upload(host, port)
            os.kill(os.getpid(), signal.SIGTERM)
            answers.append(read_all(stuck))

    assert serve_until_stopped(model, client, upload_grace_secs=0.1, shutdown_secs=600)
    (answer,) = answers
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"the server is stopping, and the body of the request did not arrive in time" in answer
    assert capfd.readouterr().err == ""


def test_a_computation_that_does_not_end_is_answered_and_left_behind(
    model: Model, capfd: pytest.CaptureFixture[str]
) -> None:
    answers: list[bytes] = []

    def client(host: str, port: int) -> None:
        with socket.create_connection((host, port)) as slow:
            body = b'{"signature_name": "count", "instances": [300000]}'
            slow.sendall(post_head(len(body)) + body)
            wait_for_upload(host, port)
            os.kill(os.getpid(), signal.SIGTERM)
            answers.append(read_all(slow))

    assert not serve_until_stopped(model, client, shutdown_secs=0)
    (answer,) = answers
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"the server stopped before the request was answered" in answer
    assert "Traceback" not in capfd.readouterr().err


def accepts_connections(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=600).close()
    except ConnectionError:
        return False
    except TimeoutError:  # the queue of the socket is full: it is there still, and nobody takes from it
        return True
    return True


def test_a_plain_base_path_is_served_under_its_name(
    half_plus_two_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with address.listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    answers: list[Any] = []

    def client() -> None:
        while not accepts_connections("127.0.0.1", port):
            time.sleep(0.02)
        url = f"http://127.0.0.1:{port}/v1/models/half_plus_two/versions/123:predict"
        answers.append(httpx.post(url, json={"instances": [1.0, 2.0, 5.0] * 6}, timeout=600).json())
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=client)
    thread.start()
    serve(half_plus_two_path, port=port, grpc_port=0)
    thread.join()
    assert answers == [{"predictions": [2.5, 3.0, 4.5] * 6}]
    told = capfd.readouterr()
    assert f"serving half_plus_two at http://127.0.0.1:{port}/v1/models/half_plus_two" in told.out
    assert "version 123 of half_plus_two is available" in told.err
    assert "curl" not in told.err  # whose line is for images


def test_what_cannot_be_served_is_told_before_tensorflow_starts(
    export_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ArtifactError, match="make an export with: trainer export RUN --out EXPORT"):
        serve(tmp_path)
    (tmp_path / "signature.json").write_bytes((export_dir / "signature.json").read_bytes())
    with pytest.raises(ArtifactError, match="holds no version of a SavedModel"):
        serve(tmp_path)


def test_a_port_in_use_is_told_with_the_fix_before_tensorflow_starts(
    export_dir: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DeviceError, match=f"cannot listen on 127.0.0.1:{port} .Address already in use.") as caught:
            serve(export_dir, port=port)
        assert "--port 0 takes any that is free" in str(caught.value)
        with pytest.raises(DeviceError, match=f"cannot listen on 127.0.0.1:{port} .Address already in use.") as caught:
            serve(export_dir, port=0, grpc_port=port)
        assert "--grpc-port 0 takes any that is free" in str(caught.value)
        # Taken between this check and the start of gRPC.
        with pytest.raises(DeviceError, match=f"cannot listen on 127.0.0.1:{port}") as caught:
            asyncio.run(start_rpc(port))
    assert "--grpc-port 0" in str(caught.value)
    assert "loading" not in capfd.readouterr().err


async def start_rpc(port: int) -> None:
    from serving.inference.inference import Inference
    from serving.rpc.rpc_server import RpcServer

    await RpcServer(Inference(Models()), []).start("127.0.0.1", port)


def test_two_grpc_servers_do_not_share_a_port() -> None:
    from serving.inference.inference import Inference
    from serving.rpc.rpc_server import RpcServer

    async def start_both() -> None:
        first = RpcServer(Inference(Models()), [])
        port = await first.start("127.0.0.1", 0)
        try:
            with pytest.raises(DeviceError, match=f"cannot listen on 127.0.0.1:{port}"):
                await start_rpc(port)
        finally:
            await first.stop(0)

    asyncio.run(start_both())


def test_answers_on_a_kept_connection_wait_for_nothing() -> None:
    async def accept_one() -> int:
        accepted = asyncio.get_running_loop().create_future()
        with address.listen("127.0.0.1", 0) as listener:
            server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), sock=listener)
            with socket.create_connection(listener.getsockname()):
                writer = await accepted
                no_delay = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                writer.close()
                server.close()
        return int(no_delay)

    assert asyncio.run(accept_one()) != 0


def test_the_address_that_is_printed_is_one_that_a_client_can_use() -> None:
    with address.listen("0.0.0.0", 0) as listener:
        assert address.url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_the_curl_line_quotes_what_a_shell_would_read() -> None:
    line = address.curl_line("http://h:1", "a b", "my cat's.jpg")
    assert "'my cat'\"'\"'s.jpg'" in line
    assert line.endswith("http://h:1/v1/models/a%20b:predict")
