"""The Open Inference Protocol over REST, against a real server: the cases of its specification, and what is refused."""

import gzip
import json
from typing import Any

import httpx
import numpy as np
import pytest
from brightness_export import CLASS_NAMES, SIZE, grey_pixels, jpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from trainer import __version__

MODEL = "/v2/models/brightness"
INFER = f"{MODEL}/infer"
JSON_LENGTH = "Inference-Header-Content-Length"
METRICS = "/monitoring/prometheus/metrics"


def error(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert list(answer) == ["error"]
    return str(answer["error"])


def infer(http: httpx.Client, document: Any, path: str = INFER) -> Any:
    response = http.post(path, json=document)
    assert response.status_code == 200, response.text
    assert JSON_LENGTH not in response.headers
    return response.json()


def post_binary(http: httpx.Client, document: Any, *data: bytes, **headers: str) -> httpx.Response:
    head = json.dumps(document).encode()
    headers = {JSON_LENGTH: str(len(head)), **headers}
    return http.post(INFER, content=b"".join([head, *data]), headers=headers)


def split(response: httpx.Response) -> tuple[Any, bytes]:
    assert response.status_code == 200, response.text
    length = int(response.headers[JSON_LENGTH])
    assert response.headers["content-type"] == "application/octet-stream"
    assert int(response.headers["content-length"]) == len(response.content)
    return json.loads(response.content[:length]), response.content[length:]


def ratio_request(a: Any = (1, -1, 3, 0), b: Any = (1, 2), **more: Any) -> dict[str, Any]:
    """A request to the signature with two inputs: a [2, 2] FP32, b [2] INT64; its output is a / b."""
    return {
        "parameters": {"signature_name": "ratio"},
        "inputs": [
            {"name": "a", "shape": [2, 2], "datatype": "FP32", "data": list(a)},
            {"name": "b", "shape": [2], "datatype": "INT64", "data": list(b)},
        ],
        **more,
    }


RATIO = {"name": "ratio", "datatype": "FP32", "shape": [2, 2], "data": [1.0, -1.0, 1.5, 0.0]}


# Paths, and the answers that inference_rest.md gives for them.
@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"live": True, "ready": True}),
        (
            "/v2",
            {"name": "trainer", "version": __version__, "extensions": ["binary_tensor_data", "signature_name"]},
        ),
        (
            "/v2/",
            {"name": "trainer", "version": __version__, "extensions": ["binary_tensor_data", "signature_name"]},
        ),
        (f"{MODEL}/ready", {"name": "brightness", "ready": True}),
        (f"{MODEL}/versions/9/ready", {"name": "brightness", "ready": True}),
        (
            f"{MODEL}?signature_name=ratio",
            {
                "name": "brightness",
                "versions": ["9", "10"],
                "platform": "tensorflow_savedmodel",
                "inputs": [
                    {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
                    {"name": "b", "datatype": "INT64", "shape": [-1]},
                ],
                "outputs": [{"name": "ratio", "datatype": "FP32", "shape": [-1, 2]}],
                "properties": {"signatures": "count,images,ratio,reverse,serving_default,unguarded"},
            },
        ),
    ],
)
def test_health_and_metadata(http: httpx.Client, path: str, answer: Any) -> None:
    response = http.get(path)
    assert (response.status_code, response.json()) == (200, answer)
    head = http.head(path)
    assert (head.status_code, head.content) == (200, b"")


def test_metadata_describes_the_default_signature(http: httpx.Client) -> None:
    described = http.get(f"{MODEL}/versions/10").json()
    assert described["inputs"] == [{"name": "image_bytes", "datatype": "BYTES", "shape": [-1]}]
    assert {tensor["name"]: tensor["datatype"] for tensor in described["outputs"]} == {
        "class_id": "INT64",
        "label": "BYTES",
        "probabilities": "FP32",
        "status": "BYTES",
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("GET", "/v2/models/absent", 404, "Servable not found for request: Latest(absent)"),
        ("GET", "/v2/models/absent/ready", 404, "Servable not found for request: Latest(absent)"),
        ("GET", f"{MODEL}/versions/8", 404, "Servable not found for request: Specific(brightness, 8)"),
        ("GET", f"{MODEL}/versions/8/ready", 404, "Specific(brightness, 8)"),
        ("GET", f"{MODEL}/versions/v10/ready", 404, "Specific(brightness, v10)"),
        ("GET", f"{MODEL}?signature_name=nope", 400, 'Serving signature name: "nope" not found'),
        ("POST", "/v2/models/absent/infer", 404, "Latest(absent)"),
        ("POST", f"{MODEL}/versions/{2**63}/infer", 404, f"Specific(brightness, {2**63})"),
        ("GET", "/v2/models", 404, "nothing is at /v2/models;"),
        ("GET", "/v2/health", 404, "nothing is at /v2/health;"),
        ("GET", f"{MODEL}/stats", 404, "nothing is at"),
        ("GET", INFER, 405, "GET is not possible here; use POST"),
        ("POST", MODEL, 405, "POST is not possible here; use GET"),
        ("DELETE", "/v2/health/live", 405, "DELETE is not possible here; use GET"),
        ("OPTIONS", INFER, 400, "Origin header is missing in CORS preflight"),
    ],
)
def test_what_is_not_there(http: httpx.Client, method: str, path: str, status: int, told: str) -> None:
    assert told in error(http.request(method, path), status)


@pytest.mark.parametrize(
    ("document", "answer"),
    [
        # Flat or nested, in row-major order.
        (ratio_request(), [RATIO]),
        (ratio_request(a=[[1, -1], [3.0, 0]]), [RATIO]),
        # The outputs that are asked for, and parameters that nobody defines.
        (ratio_request(outputs=[{"name": "ratio"}]), [RATIO]),
        (ratio_request(outputs=[{"name": "ratio", "parameters": {"ours": 1, "theirs": "x"}}]), [RATIO]),
        (ratio_request(outputs=[]), [RATIO]),
        (
            {
                "parameters": {"signature_name": "reverse"},
                "inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["ab", "ä"]}],
                "outputs": [{"name": "length"}],
            },
            [{"name": "length", "datatype": "INT32", "shape": [2], "data": [2, 2]}],
        ),
        (
            ratio_request(a=[], b=[])
            | {
                "inputs": [
                    {"name": "b", "shape": [0], "datatype": "INT64", "data": []},
                    {"name": "a", "shape": [0, 2], "datatype": "FP32", "data": []},
                ]
            },
            [{"name": "ratio", "datatype": "FP32", "shape": [0, 2], "data": []}],
        ),
    ],
)
def test_inference(http: httpx.Client, document: Any, answer: Any) -> None:
    assert infer(http, document) == {"model_name": "brightness", "model_version": "10", "outputs": answer}
    with_id = infer(http, {**document, "id": "42"}, f"{MODEL}/versions/9/infer")
    assert with_id == {"model_name": "brightness", "model_version": "9", "id": "42", "outputs": answer}


def test_answers_equal_those_of_tensorflow_servings_api(http: httpx.Client) -> None:
    pixels = grey_pixels(3, 120, 250)
    expected = http.post(
        "/v1/models/brightness:predict", json={"signature_name": "images", "inputs": pixels.tolist()}
    ).json()["outputs"]
    asked = {
        "parameters": {"signature_name": "images"},
        "inputs": [
            {"name": "images", "shape": [3, SIZE, SIZE, 3], "datatype": "FP32", "data": pixels.ravel().tolist()}
        ],
    }
    outputs = {tensor["name"]: tensor for tensor in infer(http, asked)["outputs"]}
    assert sorted(outputs) == sorted(expected)
    for name, values in expected.items():
        assert outputs[name]["data"] == np.ravel(values).tolist()
        assert outputs[name]["shape"] == list(np.shape(values))


def test_images_are_sent_and_answered_as_binary_data(http: httpx.Client) -> None:
    images = b"".join(len(image).to_bytes(4, "little") + image for image in (jpeg(0), jpeg(255)))
    image_input = {
        "name": "image_bytes",
        "shape": [2],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(images)},
    }
    outputs = [{"name": "label"}, {"name": "class_id", "parameters": {"binary_data": True}}]
    document, data = split(post_binary(http, {"inputs": [image_input], "outputs": outputs}, images))
    assert document["outputs"] == [
        {"name": "label", "datatype": "BYTES", "shape": [2], "data": [CLASS_NAMES[0], CLASS_NAMES[2]]},
        {"name": "class_id", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}},
    ]
    assert np.frombuffer(data, "<i8").tolist() == [0, 2]

    asked = {"parameters": {"binary_data_output": True}, "inputs": [image_input]}
    asked["outputs"] = [{"name": "label"}, {"name": "class_id", "parameters": {"binary_data": False}}]
    body = json.dumps(asked).encode()
    headers = {JSON_LENGTH: str(len(body)), "Content-Encoding": "gzip"}
    document, data = split(http.post(INFER, content=gzip.compress(body + images), headers=headers))
    assert document["outputs"][1]["data"] == [0, 2]
    assert data == b"\x04\0\0\0dark\x06\0\0\0bright"


def test_outputs_that_json_cannot_hold_are_told_and_binary_data_can(http: httpx.Client) -> None:
    nan = ratio_request(a=[0, 1, 1, 1], b=[0, 1])
    told = error(http.post(INFER, json=nan), 400)
    assert "'ratio' holds 2 of 4 numbers that are not finite (nan)" in told
    assert "ask for it with the parameter 'binary_data': true" in told
    nan["parameters"]["binary_data_output"] = True
    document, data = split(http.post(INFER, json=nan))
    assert document["outputs"][0]["parameters"] == {"binary_data_size": 16}
    np.testing.assert_array_equal(np.frombuffer(data, "<f4"), np.float32([np.nan, np.inf, 1, 1]))

    not_text = {
        "parameters": {"signature_name": "reverse"},
        "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["ab"]}],
    }
    assert "output 'text_bytes' is not UTF-8" in error(http.post(INFER, json=not_text), 400)


def changed(index: int, **changes: Any) -> dict[str, Any]:
    """The request to `ratio` with other keys in one of its inputs; None removes a key."""
    document = ratio_request()
    changed_input = {**document["inputs"][index], **changes}
    document["inputs"][index] = {key: value for key, value in changed_input.items() if value is not None}
    return document


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([1], "JSON Value: [1] Is not object"),
        ({}, "the request has the inputs , expected each of image_bytes once"),
        ({"inputs": {}}, "'inputs' must be an array of objects, not {}"),
        ({"inputs": [1]}, "'inputs' must be an array of objects, not [1]"),
        ({"inputs": [{"shape": [1]}]}, "an input has no 'name'"),
        (ratio_request(id=7), "'id' must be a string, not 7"),
        (ratio_request(outputs=[{"name": "nope"}]), "signature 'ratio' has no output 'nope'; it has ratio"),
        (ratio_request(outputs=[{"name": "ratio"}] * 2), "an output is asked for twice"),
        (ratio_request(outputs=[{"name": "ratio", "parameters": {"binary_data": 1}}]), "must be true or false"),
        (
            ratio_request(outputs=[{"name": "ratio", "parameters": {"classification": 1}}]),
            "'classification', an extens",
        ),
        (ratio_request(parameters=[]), "the 'parameters' of the request must be an object"),
        (ratio_request(parameters={"x": None}), "must be an object of strings, numbers and booleans"),
        (ratio_request(parameters={"signature_name": 1}), "must be the name of a signature"),
        (ratio_request(parameters={"signature_name": "nope"}), 'Serving signature name: "nope" not found'),
        (ratio_request(parameters={}), "expected each of image_bytes once, those of signature 'serving_default'"),
        (ratio_request(inputs=ratio_request()["inputs"][:1]), "has the inputs a, expected each of a, b once"),
        (ratio_request(inputs=ratio_request()["inputs"] * 2), "has the inputs a, b, a, b, expected each of a, b once"),
        (changed(0, datatype="FP64"), "input 'a' has datatype FP64, expected FP32"),
        (changed(0, datatype="FLOAT"), "input 'a' has the unknown datatype 'FLOAT'; expected one of BOOL, UINT8"),
        (changed(0, datatype=None), "input 'a' has no 'datatype'"),
        (changed(0, shape=None), "input 'a' has no 'shape'"),
        (changed(0, shape=[2, -2]), "input 'a' has shape [2, -2]; expected integers from 0 to 2^63 - 1"),
        (changed(0, shape=[2, 2.0]), "input 'a' has shape [2, 2.0]; expected integers"),
        (changed(0, shape=[True, 4]), "input 'a' has shape [true, 4]; expected integers"),
        (changed(0, shape=[2**62, 2**62]), "input 'a' has data of shape [4], expected"),
        (changed(0, shape=[2**63]), "expected integers from 0 to 2^63 - 1"),
        (changed(0, shape=[0, 2**62], data=[]), "whose sizes are too large"),
        (changed(0, shape=[1] * 33), "input 'a' has 33 dimensions; expected 32 at most"),
        (changed(0, data=[[1, 2, 3, 4]]), "data of shape [1, 4], expected [2, 2] or one array of its 4 elements"),
        (changed(0, data=[1, 2, 3]), "data of shape [3], expected [2, 2]"),
        (changed(0, data=[[1, 2], [3]]), "input 'a' is ragged"),
        (changed(0, data=5), "input 'a': 'data' must be an array, not 5"),
        (changed(0, data=None), "input 'a' must have either 'data' or the parameter 'binary_data_size'"),
        (changed(0, parameters={"binary_data_size": 16}), "must have either 'data' or the parameter"),
        (
            changed(0, data=None, parameters={"binary_data_size": 16}),
            "has the binary_data_size 16, but 0 bytes are left",
        ),
        (changed(0, data=[1, 2, 3, "4"]), "input 'a': JSON Value: \"4\" is not of expected type: FP32"),
        (changed(0, data=[1, 2, 3, 1e39]), "1e+39 is outside the range of FP32"),
        (changed(1, data=[1, 2**63]), "9223372036854775808 is outside the range of INT64"),
        (changed(1, data=[1, 2.5]), "JSON Value: 2.5 is not of expected type: INT64"),
        ({"inputs": [{"name": "image_bytes", "shape": [1], "datatype": "BYTES", "data": [7]}]}, "send bytes as binary"),
        (changed(0, shape=[1, 4]), "Batching Run() input tensors must have equal 0th-dimension size"),
        (
            {
                "parameters": {"signature_name": "images"},
                "inputs": [{"name": "images", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}],
            },
            f"input 'images' of signature 'images' has shape [1, 2], expected [-1, {SIZE}, {SIZE}, 3]",
        ),
    ],
)
def test_requests_that_do_not_fit_are_refused_by_name(http: httpx.Client, document: Any, told: str) -> None:
    assert told in error(http.post(INFER, json=document), 400)


@pytest.mark.parametrize(
    ("sizes", "data", "headers", "told"),
    [
        ((16, 16), b"\0" * 31, {}, "input 'b' has the binary_data_size 16, but 15 bytes are left"),
        ((16, 16), b"\0" * 33, {}, "1 bytes of the body belong to no input"),
        ((12, 16), b"\0" * 28, {}, "input 'a' has 12 bytes of data, expected 16 for shape [2, 2] of FP32"),
        ((-1, 16), b"\0" * 28, {}, "input 'a' has the binary_data_size -1, but"),
        ((True, 16), b"\0" * 28, {}, "input 'a' has the binary_data_size true, but"),
        ((16, 16), b"\0" * 32, {JSON_LENGTH: "x"}, f"the header {JSON_LENGTH} is 'x'; expected the length"),
        ((16, 16), b"\0" * 32, {JSON_LENGTH: "9" * 30}, f"the header {JSON_LENGTH} is '9"),
        ((16, 16), b"\0" * 32, {JSON_LENGTH: "100000"}, f"the header {JSON_LENGTH} is '100000'"),
        ((16, 16), b"\0" * 32, {JSON_LENGTH: "0"}, "JSON Parse error: The document is empty"),
        ((16, 16), b"\0" * 32, {JSON_LENGTH: "7"}, "JSON Parse error"),
    ],
)
def test_binary_data_that_does_not_fit_is_refused(
    http: httpx.Client, sizes: tuple[int, int], data: bytes, headers: dict[str, str], told: str
) -> None:
    document = ratio_request()
    for tensor, size in zip(document["inputs"], sizes, strict=True):
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": size}
    assert told in error(post_binary(http, document, data, **headers), 400)


def test_a_body_over_the_limit_is_refused(http: httpx.Client) -> None:
    assert "larger than 1000000 bytes" in error(http.post(INFER, content=b" " * 1_000_001), 413)


def binary_request() -> tuple[bytes, bytes]:
    document = ratio_request(id="1", outputs=[{"name": "ratio", "parameters": {"binary_data": True}}])
    for tensor, size in zip(document["inputs"], (16, 16), strict=True):
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": size}
    return json.dumps(document).encode(), np.float32([1, -1, 3, 0]).tobytes() + np.int64([1, 2]).tobytes()


HEAD, DATA = binary_request()
VALID = json.dumps(ratio_request(id="1", outputs=[{"name": "ratio"}])).encode()
CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([(HEAD + DATA, len(HEAD)), (VALID, len(VALID))]) | st.tuples(st.binary(max_size=99)), CHANGES)
def test_random_and_changed_bodies_give_documented_errors_and_the_server_lives(
    http: httpx.Client, sent: tuple[bytes, int] | tuple[bytes], changes: list[tuple[int, int]]
) -> None:
    body = bytearray(sent[0])
    for position, byte in changes if body else []:
        body[position % len(body)] = byte
    headers = {JSON_LENGTH: str(sent[1])} if len(sent) == 2 else {}
    response = http.post(INFER, content=bytes(body), headers=headers)
    if response.status_code != 200:
        assert error(response, 400)
    assert http.get("/v2/health/live").json() == {"live": True}


def test_requests_are_counted(http: httpx.Client) -> None:
    def count() -> dict[tuple[str, ...], float]:
        page = http.get(METRICS).text.replace(":tensorflow:serving:", "")
        return {
            (
                sample.name,
                *(sample.labels.get(k, "") for k in ("model_name", "status", "API", "entrypoint")),
            ): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }

    def counted(before: dict[tuple[str, ...], float], *key: str) -> float:
        return count().get(key, 0.0) - before.get(key, 0.0)

    before = count()
    infer(http, ratio_request())
    error(http.post(INFER, json={}), 400)
    error(http.post("/v2/models/absent/infer", json={}), 404)
    http.get("/v2/health/ready")
    assert counted(before, "request_count_total", "brightness", "OK", "", "") == 1
    assert counted(before, "request_count_total", "brightness", "INVALID_ARGUMENT", "", "") == 1
    assert counted(before, "request_count_total", "", "NOT_FOUND", "", "") == 1
    assert counted(before, "request_latency_count", "brightness", "", "infer", "REST") == 1
    assert counted(before, "runtime_latency_count", "brightness", "", "Infer", "") == 1
