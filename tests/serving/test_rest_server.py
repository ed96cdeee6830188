"""TensorFlow Serving's REST API, over real HTTP to a real SavedModel."""

import asyncio
import base64
import concurrent.futures
import gzip
import json
import pathlib
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from brightness_export import CLASS_NAMES, SIZE, grey_pixels, jpeg
from google.protobuf import json_format
from prometheus_client.parser import text_string_to_metric_families
from running_server import running_server

from serving.http.request_body import BodyReader
from serving.protocol.status import RequestError

PREDICT = "/v1/models/brightness:predict"
METRICS = "/monitoring/prometheus/metrics"
COUNT = ":tensorflow:serving:request_count"


def b64(content: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(content).decode()}


def predict(http: httpx.Client, body: Any, path: str = PREDICT) -> Any:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def error(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    answer = response.json()
    assert list(answer) == ["error"]
    return str(answer["error"])


def test_rows_of_encoded_images(http: httpx.Client) -> None:
    answer = predict(http, {"instances": [b64(jpeg(0)), b64(jpeg(255, width=5, height=40))]})
    assert list(answer) == ["predictions"]
    assert [row["label"] for row in answer["predictions"]] == ["dark", "bright"]
    assert [row["class_id"] for row in answer["predictions"]] == [0, 2]
    for row in answer["predictions"]:
        assert len(row["probabilities"]) == len(CLASS_NAMES)
        assert sum(row["probabilities"]) == pytest.approx(1.0)


def test_rows_may_name_their_input(http: httpx.Client) -> None:
    plain = predict(http, {"instances": [b64(jpeg(128))]})
    assert predict(http, {"instances": [{"image_bytes": b64(jpeg(128))}]}) == plain
    assert plain["predictions"][0]["label"] == "medium"


def test_a_bad_image_is_told_in_its_row_and_the_others_are_answered(http: httpx.Client) -> None:
    rows = predict(http, {"instances": [b64(jpeg(0)), b64(b"not an image"), b64(jpeg(255)[:200]), b64(jpeg(255))]})
    assert [row["status"] for row in rows["predictions"]] == ["ok", "not_an_image", "undecodable", "ok"]
    assert [rows["predictions"][i]["label"] for i in (0, 3)] == ["dark", "bright"]


def test_columns(http: httpx.Client) -> None:
    images = [b64(jpeg(level)) for level in (0, 128, 255)]
    answer = predict(http, {"inputs": {"image_bytes": images}})
    assert answer["outputs"]["label"] == CLASS_NAMES
    assert answer["outputs"]["class_id"] == [0, 1, 2]
    assert predict(http, {"inputs": images}) == answer


def test_a_named_signature_takes_pixels(http: httpx.Client) -> None:
    body = {"signature_name": "images", "instances": grey_pixels(250, 5).tolist()}
    assert [row["label"] for row in predict(http, body)["predictions"]] == ["bright", "dark"]


def test_one_output_loses_its_name(http: httpx.Client) -> None:
    body = {"signature_name": "ratio", "instances": [{"a": [1, -1], "b": 1}, {"a": [3, 0], "b": 2}]}
    assert http.post(PREDICT, json=body).content == b'{"predictions": [[1.0, -1.0], [1.5, 0.0]]}'


def test_numbers_that_are_not_finite_are_no_answer(http: httpx.Client) -> None:
    body = {"signature_name": "ratio", "instances": [{"a": [0, -1], "b": 0}, {"a": [3, 0], "b": 2}]}
    told = error(http.post(PREDICT, json=body), 500)
    assert "output 'ratio' holds 2 of 4 numbers that are not finite (nan), which JSON cannot represent" in told


def test_outputs_whose_name_ends_in_bytes_are_base64(http: httpx.Client) -> None:
    answer = predict(http, {"signature_name": "reverse", "inputs": ["ab"]})
    assert answer == {"outputs": {"length": [2], "text_bytes": [b64(b"ab\xff")]}}


def test_a_version_can_be_named(http: httpx.Client) -> None:
    body = {"instances": [b64(jpeg(255))]}
    newest = predict(http, body)
    assert predict(http, body, "/v1/models/brightness/versions/9:predict") == newest
    assert predict(http, body, "/V1/Models/brightness/versions/10:PREDICT") == newest


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "JSON Parse error"),
        (b'{"instances": [1], "inputs": [1]}', "only one of 'inputs' or 'instances'"),
        (b'{"instances": [1]}', "JSON Value: 1 is not of expected type: string"),
        (
            b'{"signature_name": "nope", "instances": [1]}',
            'Serving signature name: "nope" not found in signature def (there are: count, images, ratio, reverse, '
            "serving_default, unguarded)",
        ),
        (
            b'{"signature_name": "images", "instances": [[[1, 2, 3]]]}',
            f"input 'images' of signature 'images' has shape [1, 1, 3], expected [-1, {SIZE}, {SIZE}, 3], where",
        ),
        (b'{"signature_name": "unguarded", "instances": [{"b64": "bm90IGFuIGltYWdl"}]}', "Unknown image file format"),
    ],
)
def test_bad_requests_are_400_and_say_why(http: httpx.Client, body: bytes, told: str) -> None:
    message = error(http.post(PREDICT, content=body), 400)
    assert told in message
    assert "node" not in message


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/v1/models/nope:predict", "Servable not found for request: Latest(nope)"),
        ("/v1/models/brightness/versions/7:predict", "Servable not found for request: Specific(brightness, 7)"),
    ],
)
def test_predicting_with_what_is_not_there_is_404(http: httpx.Client, path: str, told: str) -> None:
    assert error(http.post(path, json={"instances": [1]}), 404) == told


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/v1/models/nope", "Could not find any versions of model nope"),
        ("/v1/models/brightness/versions/7", "Could not find version 7 of model brightness"),
        ("/v1/models/nope/metadata", "Servable not found for request: Latest(nope)"),
        ("/elsewhere", "nothing is at /elsewhere; see /v1/models/NAME"),
    ],
)
def test_asking_for_what_is_not_there_is_404(http: httpx.Client, path: str, told: str) -> None:
    assert error(http.get(path), 404) == told


@pytest.mark.parametrize(
    ("method", "path", "told"),
    [
        ("GET", PREDICT, "Malformed request: GET /v1/models/brightness:predict"),
        ("PUT", PREDICT, "Malformed request: PUT /v1/models/brightness:predict"),
        ("DELETE", "/v1/models/brightness", "Malformed request: DELETE /v1/models/brightness"),
        ("POST", "/v1/models/brightness", "Malformed request: POST /v1/models/brightness"),
        ("POST", "/v1/models/brightness:explain", "Malformed request"),
        ("GET", "/v1/models/brightness/versions/x", "Malformed request"),
        ("GET", f"/v1/models/brightness/versions/{2**63}", "Failed to convert version"),
        ("GET", "/v1/models/brightness/labels/stable", "Unrecognized servable version label: stable"),
    ],
)
def test_malformed_requests_are_400(http: httpx.Client, method: str, path: str, told: str) -> None:
    assert told in error(http.request(method, path), 400)


def test_head_is_answered_as_get_where_that_server_does(http: httpx.Client) -> None:
    # TensorFlow Serving takes no HEAD under /v1/, and any method for the metrics.
    statuses = {path: http.head(path).status_code for path in ("/v1/models/brightness", "/readyz", METRICS)}
    assert statuses == {"/v1/models/brightness": 400, "/readyz": 200, METRICS: 200}
    assert http.head(METRICS).content == b""


@pytest.mark.parametrize("method", ["classify", "regress"])
def test_methods_over_examples_say_that_the_signature_is_for_predict(http: httpx.Client, method: str) -> None:
    told = error(http.post(f"/v1/models/brightness:{method}", json={"examples": [{"x": 1}]}), 400)
    assert f"signature 'serving_default' is not one for :{method}: it takes image_bytes and gives class_id" in told
    assert told.endswith("use :predict")


def test_status(http: httpx.Client) -> None:
    def available(version: int) -> dict[str, Any]:
        return {
            "version": str(version),
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }

    assert http.get("/v1/models/brightness").json() == {"model_version_status": [available(9), available(10)]}
    assert http.get("/v1/models/brightness/versions/9").json() == {"model_version_status": [available(9)]}


def test_metadata(http: httpx.Client) -> None:
    answer = http.get("/v1/models/brightness/metadata").json()
    assert answer["model_spec"] == {"name": "brightness", "signature_name": "", "version": "10"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    image_bytes = signatures["serving_default"]["inputs"]["image_bytes"]
    assert image_bytes["dtype"] == "DT_STRING"
    assert image_bytes["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert signatures["serving_default"]["method_name"] == "tensorflow/serving/predict"
    sizes = [dim["size"] for dim in signatures["images"]["inputs"]["images"]["tensor_shape"]["dim"]]
    assert sizes == ["-1", str(SIZE), str(SIZE), "3"]
    older = http.get("/v1/models/brightness/versions/9/metadata").json()
    assert older["model_spec"]["version"] == "9"


def test_status_and_metadata_are_the_protocol_buffers_of_tensorflow_serving(http: httpx.Client) -> None:
    from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

    status = get_model_status_pb2.GetModelStatusResponse()
    json_format.Parse(http.get("/v1/models/brightness").text, status)
    assert [entry.version for entry in status.model_version_status] == [9, 10]
    signatures = get_model_metadata_pb2.SignatureDefMap()
    json_format.ParseDict(http.get("/v1/models/brightness/metadata").json()["metadata"]["signature_def"], signatures)
    assert signatures.signature_def["images"].inputs["images"].dtype == 1


def test_a_body_over_the_limit_is_413(http: httpx.Client) -> None:
    announced = http.post(PREDICT, content=b" " * 1_000_001)
    assert "larger than 1000000 bytes" in error(announced, 413)

    def chunks() -> Iterator[bytes]:
        for _ in range(11):
            yield b" " * 100_000

    assert "larger than 1000000 bytes" in error(http.post(PREDICT, content=chunks()), 413)


def test_a_gzip_body_is_read_within_the_limit(http: httpx.Client) -> None:
    def post(body: bytes) -> httpx.Response:
        return http.post(PREDICT, content=body, headers={"Content-Encoding": "gzip"})

    body = json.dumps({"instances": [b64(jpeg(255))]}).encode()
    assert post(gzip.compress(body)).json()["predictions"][0]["label"] == "bright"
    bomb = gzip.compress(b" " * 1_000_001)
    assert len(bomb) < 2_000
    assert "larger than 1000000 bytes uncompressed" in error(post(bomb), 413)
    assert "is not valid gzip, although its Content-Encoding says so" in error(post(body), 400)
    assert "is not one complete gzip stream" in error(post(gzip.compress(body)[:-9]), 400)


def test_a_gzip_body_is_not_expanded_beyond_the_limit() -> None:
    bomb = gzip.compress(bytes(200_000_000), compresslevel=1)
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="larger than 1000000 bytes uncompressed"):
            BodyReader(1_000_000).decompress(bomb, "gzip")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 10_000_000


def test_more_examples_than_a_cluster_takes_are_refused_in_its_words(http: httpx.Client) -> None:
    def post(num_images: int) -> httpx.Response:
        return http.post(PREDICT, json={"instances": [b64(jpeg(255))] * num_images})

    assert len(post(16).json()["predictions"]) == 16
    assert error(post(17), 400) == "Task size 17 is larger than maximum input batch size 16"


def test_pages_of_other_origins_may_call_where_that_is_asked_for(export_dir: pathlib.Path, http: httpx.Client) -> None:
    from serving.models.model import Model, Models
    from serving.rest.rest_server import build_app

    page = {"Origin": "https://example.org"}
    model = Model(name="brightness", base_path=export_dir / "saved_model" / "brightness")
    with running_server(build_app(Models(model), cors=True)) as url, httpx.Client(base_url=url) as open_http:
        answers = [open_http.options(PREDICT, headers=page), open_http.get("/v1/models/brightness", headers=page)]
        for answer in [*answers, open_http.get("/v1/models/nope", headers=page)]:
            assert answer.headers["access-control-allow-origin"] == "*"
            assert answer.headers["access-control-allow-methods"] == "POST, GET"
            assert answer.headers["access-control-allow-headers"] == "Content-Type"
        assert [answer.status_code for answer in answers] == [200, 200]
    closed = http.options(PREDICT, headers=page)
    assert (closed.status_code, closed.headers.get("access-control-allow-origin")) == (200, None)
    assert error(http.options(PREDICT), 400) == "Origin header is missing in CORS preflight"


def test_requests_are_answered_at_the_same_time(http: httpx.Client) -> None:
    levels = [0, 128, 255, 5, 250] * 8
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda level: predict(http, {"instances": [b64(jpeg(level))]}), levels))
    expected = {0: "dark", 5: "dark", 128: "medium", 250: "bright", 255: "bright"}
    assert [answer["predictions"][0]["label"] for answer in answers] == [expected[level] for level in levels]


def test_a_long_prediction_does_not_hold_up_a_status_call(http: httpx.Client, server_url: str) -> None:
    body = {"signature_name": "count", "instances": [60_000]}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        long_one = pool.submit(predict, http, body)
        while in_progress(http) != 1.0:
            assert not long_one.done()
        assert http.get("/v1/models/brightness").status_code == 200
        assert not long_one.done()
        assert len(long_one.result()["predictions"]) == 1


def in_progress(http: httpx.Client) -> float:
    return sample(http, "serving_requests_in_progress")


def sample(http: httpx.Client, name: str, **labels: str) -> float:
    samples = [sample for family in text_string_to_metric_families(http.get(METRICS).text) for sample in family.samples]
    return sum(found.value for found in samples if found.name == name and found.labels == labels)


def test_metrics_have_the_names_of_tensorflow_serving(http: httpx.Client) -> None:
    def count(model_name: str, status: str) -> float:
        text = http.get(METRICS).text
        label = f'{COUNT}{{model_name="{model_name}",status="{status}"}}'
        return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(label)), 0.0)

    def latencies(name: str, **labels: str) -> float:
        return sample(http, f":tensorflow:serving:{name}_count", model_name="brightness", **labels)

    def all_counts() -> list[float]:
        return [
            count("brightness", "OK"),
            count("brightness", "INVALID_ARGUMENT"),
            count("", "NOT_FOUND"),
            latencies("request_latency", API="predict", entrypoint="REST"),
            latencies("runtime_latency", API="Predict", runtime="TF1"),
        ]

    before = all_counts()
    predict(http, {"instances": [b64(jpeg(9))]})
    http.post(PREDICT, content=b"{")
    http.post("/v1/models/stranger:predict", content=b"{}")
    assert all_counts() == [n + 1 for n in before]
    page = http.get(METRICS)
    assert page.headers["content-type"].startswith("text/plain")
    assert "# TYPE :tensorflow:serving:request_count counter\n" in page.text
    assert "# TYPE :tensorflow:serving:request_latency histogram\n" in page.text
    # The limits of the buckets as that server prints them.
    for limit in ("10", "18", "32.4", "104.976", "1.47476e+09", "+Inf"):
        assert f'le="{limit}"' in page.text
    assert "stranger" not in page.text


def test_until_the_model_is_loaded_requests_are_503(export_dir: pathlib.Path) -> None:
    from serving.models.model import Model, Models
    from serving.rest.rest_server import build_app

    model = Model(name="brightness", base_path=export_dir / "saved_model" / "brightness")
    app = build_app(Models(model), max_body_bytes=1000)
    with running_server(app) as url, httpx.Client(base_url=url) as http:
        assert "still loading" in error(http.get("/readyz"), 503)
        assert "still loading" in error(http.post(PREDICT, json={"instances": [1]}), 503)
        assert http.get("/v1/models/brightness").json()["model_version_status"][0]["state"] == "START"
        model.load()
        assert http.get("/readyz").json() == {"models": ["brightness"]}
        assert http.get("/v1/models/brightness/metadata").status_code == 200


def test_a_client_that_goes_away_is_forgotten(http: httpx.Client, server_url: str) -> None:
    def cancelled() -> bool:
        return (
            ':tensorflow:serving:request_count{model_name="brightness",status="CANCELLED"} 1\n'
            in http.get(METRICS).text
        )

    assert not cancelled()

    async def send_half_a_request() -> None:
        host, port = server_url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf".encode())
        await writer.drain()
        while await asyncio.to_thread(in_progress, http) != 1.0:
            pass
        writer.close()
        await writer.wait_closed()

    asyncio.run(send_half_a_request())
    settled = threading.Event()
    for _ in range(200):
        if in_progress(http) == 0.0:
            break
        settled.wait(0.02)
    assert in_progress(http) == 0.0
    assert cancelled()
    assert json.loads(http.get("/readyz").content) == {"models": ["brightness"]}
