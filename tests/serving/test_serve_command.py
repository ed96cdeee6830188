"""`trainer serve` as a process: what it prints, how it stops, and how it refuses to start."""

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
from collections.abc import Iterator
from typing import Any

import httpx
from brightness_export import jpeg

from serving import address

# The command alone and not `trainer.cli.app`, whose imports belong to the other commands' tests.
_PROGRAM = """
import sys, typer
from serving import cli
from trainer.errors import TrainerError
app = typer.Typer(add_completion=False)
app.command()(cli.serve)
app.command()(cli.manifests)
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
    process = start(*arguments, "--port", "0", "--json")
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


def refusal(*arguments: str | pathlib.Path) -> str:
    process = start(*arguments)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1, err
    assert out == ""
    return err


def test_sigterm_lets_the_requests_in_flight_finish_and_ends_with_status_0(
    export_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    answers: list[httpx.Response] = []
    with serving(export_dir) as (process, told), httpx.Client(base_url=told["url"], timeout=600) as http:
        assert told["versions"] == [10]
        assert predicts_with_the_printed_line(told["curl"], tmp_path)

        def predict_slowly() -> None:
            body = {"signature_name": "count", "instances": [150_000]}
            answers.append(httpx.post(f"{told['url']}/v1/models/brightness:predict", json=body, timeout=600))

        request = threading.Thread(target=predict_slowly)
        request.start()
        while "serving_requests_in_progress 1.0" not in http.get("/monitoring/prometheus/metrics").text:
            assert request.is_alive()
        assert not answers
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


def test_ctrl_c_refuses_new_connections_while_it_finishes(export_dir: pathlib.Path) -> None:
    with serving(export_dir, "--name", "other", "--all-versions") as (process, told):
        assert told["model"] == "other"
        assert told["versions"] == [9, 10]
        assert httpx.get(f"{told['url']}/v1/models/other/versions/9").status_code == 200
        host, port = told["url"].removeprefix("http://").split(":")
        # A request that is not whole yet keeps the server up, so that there is something to observe.
        with socket.create_connection((host, int(port))) as half:
            body = b'{"signature_name": "count", "instances": [1]}'
            head = f"POST /v1/models/other:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            half.sendall(head.encode() + body[:10])
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            while accepts_connections(host, int(port)):
                assert process.poll() is None
                time.sleep(0.05)
            half.sendall(body[10:])
            answer = b""
            while chunk := half.recv(65536):
                answer += chunk
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"predictions"' in answer
        assert process.wait(timeout=600) == 0


def accepts_connections(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=600).close()
    except ConnectionError:
        return False
    except TimeoutError:  # the queue of the socket is full: it is there still, and nobody takes from it
        return True
    return True


def test_a_wrong_directory_is_an_artifact_error_with_the_command_that_makes_one(tmp_path: pathlib.Path) -> None:
    told = refusal(tmp_path)
    assert told.startswith("ArtifactError 2:")
    assert f"make one with: trainer export RUN --out {tmp_path}" in told


def test_an_export_without_its_saved_model_is_an_artifact_error(
    export_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "signature.json").write_bytes((export_dir / "signature.json").read_bytes())
    assert "ArtifactError 2:" in (told := refusal(tmp_path, "--port", "0"))
    assert "holds no version of a SavedModel" in told


def test_a_port_in_use_is_told_with_the_fix_before_tensorflow_starts(export_dir: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = refusal(export_dir, "--port", port)
    assert told.startswith(f"DeviceError 2: cannot listen on 127.0.0.1:{port} (Address already in use)")
    assert "--port 0 takes any that is free" in told
    assert "loading" not in told


def test_the_address_that_is_printed_is_one_that_a_client_can_use() -> None:
    with address.listen("0.0.0.0", 0) as listener:
        assert address.url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_the_curl_line_quotes_what_a_shell_would_read() -> None:
    line = address.curl_line("http://h:1", "a b", "my cat's.jpg")
    assert "'my cat'\"'\"'s.jpg'" in line
    assert line.endswith("http://h:1/v1/models/a%20b:predict")
