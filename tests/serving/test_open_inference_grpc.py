"""The Open Inference Protocol over gRPC, against a real server: the cases of its specification, and what is refused."""

from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from brightness_export import SIZE, grey_pixels, jpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running_server import running_rpc

from serving.models.model import Models
from serving.open_inference.datatypes import DATATYPES
from serving.open_inference.grpc_messages import decode_request
from serving.open_inference.infer import decode_inputs
from serving.protocol.protos import open_inference_pb2 as messages
from serving.protocol.status import RequestError
from serving.protocol.tensors import SignatureSpec, TensorSpec
from trainer import __version__

SERVICE = "inference.GRPCInferenceService"


def call(channel: grpc.Channel, method: str, timeout_secs: float | None = 600, **fields: Any) -> Any:
    request = getattr(messages, f"{method}Request")(**fields)
    response_type = getattr(messages, f"{method}Response")
    ask = channel.unary_unary(f"/{SERVICE}/{method}", type(request).SerializeToString, response_type.FromString)
    return ask(request, timeout=timeout_secs)


def refusal(channel: grpc.Channel, method: str = "ModelInfer", **fields: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, **fields)
    return caught.value.code().name, caught.value.details()


def text(value: str) -> Any:
    return messages.InferParameter(string_param=value)


def ratio_request(**more: Any) -> dict[str, Any]:
    """A request to the signature with two inputs: a [2, 2] FP32, b [2] INT64; its output is a / b."""
    return {
        "model_name": "brightness",
        "parameters": {"signature_name": text("ratio")},
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [2, 2], "contents": {"fp32_contents": [1, -1, 3, 0]}},
            {"name": "b", "datatype": "INT64", "shape": [2], "contents": {"int64_contents": [1, 2]}},
        ],
        **more,
    }


def raw_request(*contents: bytes) -> dict[str, Any]:
    request = ratio_request(raw_input_contents=contents)
    for tensor in request["inputs"]:
        del tensor["contents"]
    return request


def changed(index: int, **changes: Any) -> dict[str, Any]:
    """The request to `ratio` with other fields in one of its inputs."""
    request = ratio_request()
    request["inputs"][index] |= changes
    return request


A, B = np.float32([1, -1, 3, 0]).tobytes(), np.int64([1, 2]).tobytes()


@pytest.mark.parametrize(
    ("method", "fields", "answer"),
    [
        ("ServerLive", {}, {"live": True}),
        ("ServerReady", {}, {"ready": True}),
        ("ModelReady", {"name": "brightness"}, {"ready": True}),
        ("ModelReady", {"name": "brightness", "version": "9"}, {"ready": True}),
        (
            "ServerMetadata",
            {},
            {"name": "trainer", "version": __version__, "extensions": ["binary_tensor_data", "signature_name"]},
        ),
        (
            "ModelInfer",
            ratio_request(id="42"),
            {
                "model_name": "brightness",
                "model_version": "10",
                "id": "42",
                "outputs": [
                    {
                        "name": "ratio",
                        "datatype": "FP32",
                        "shape": [2, 2],
                        "contents": {"fp32_contents": [1, -1, 1.5, 0]},
                    }
                ],
            },
        ),
        (
            "ModelInfer",
            {**raw_request(A, B), "model_version": "9", "outputs": [{"name": "ratio"}]},
            {
                "model_name": "brightness",
                "model_version": "9",
                "outputs": [{"name": "ratio", "datatype": "FP32", "shape": [2, 2]}],
                "raw_output_contents": [np.float32([1, -1, 1.5, 0]).tobytes()],
            },
        ),
        (
            "ModelInfer",
            {
                "model_name": "brightness",
                "parameters": {"signature_name": text("reverse")},
                "inputs": [
                    {
                        "name": "text",
                        "datatype": "BYTES",
                        "shape": [2],
                        "contents": {"bytes_contents": [b"ab", b"\xfe"]},
                    }
                ],
            },
            {
                "model_name": "brightness",
                "model_version": "10",
                "outputs": [
                    {"name": "length", "datatype": "INT32", "shape": [2], "contents": {"int_contents": [2, 1]}},
                    {
                        "name": "text_bytes",
                        "datatype": "BYTES",
                        "shape": [2],
                        "contents": {"bytes_contents": [b"ab\xff", b"\xfe\xff"]},
                    },
                ],
            },
        ),
    ],
)
def test_calls(brightness_rpc: grpc.Channel, method: str, fields: dict[str, Any], answer: dict[str, Any]) -> None:
    assert call(brightness_rpc, method, **fields) == getattr(messages, f"{method}Response")(**answer)


def test_metadata_is_that_of_rest(brightness_rpc: grpc.Channel, http: httpx.Client) -> None:
    expected = http.get("/v2/models/brightness").json()
    assert call(brightness_rpc, "ModelMetadata", name="brightness") == messages.ModelMetadataResponse(**expected)
    assert expected["platform"] == "tensorflow_savedmodel"


@pytest.mark.parametrize("is_raw", [False, True])
def test_answers_equal_those_of_tensorflow_servings_api(
    brightness_rpc: grpc.Channel, http: httpx.Client, is_raw: bool
) -> None:
    pixels = grey_pixels(3, 120, 250)
    body = {"signature_name": "images", "inputs": pixels.tolist()}
    expected = http.post("/v1/models/brightness:predict", json=body).json()["outputs"]
    tensor = {"name": "images", "datatype": "FP32", "shape": [3, SIZE, SIZE, 3]}
    data: dict[str, Any] = (
        {"inputs": [tensor], "raw_input_contents": [pixels.tobytes()]}
        if is_raw
        else {"inputs": [{**tensor, "contents": {"fp32_contents": pixels.ravel().tolist()}}]}
    )
    answer = call(
        brightness_rpc, "ModelInfer", model_name="brightness", parameters={"signature_name": text("images")}, **data
    )
    outputs = {tensor.name: (index, tensor) for index, tensor in enumerate(answer.outputs)}
    assert sorted(outputs) == sorted(expected)
    index, tensor = outputs["probabilities"]
    assert list(tensor.shape) == [3, 3]
    probabilities = (
        np.frombuffer(answer.raw_output_contents[index], "<f4") if is_raw else np.float32(tensor.contents.fp32_contents)
    )
    np.testing.assert_array_equal(probabilities, np.ravel(np.float32(expected["probabilities"])))
    index, tensor = outputs["label"]
    labels = b"".join(len(label).to_bytes(4, "little") + label.encode() for label in expected["label"])
    if is_raw:
        assert answer.raw_output_contents[index] == labels
    else:
        assert [label.decode() for label in tensor.contents.bytes_contents] == expected["label"]


def test_images(brightness_rpc: grpc.Channel) -> None:
    image = {"name": "image_bytes", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [jpeg(255)]}}
    answer = call(brightness_rpc, "ModelInfer", model_name="brightness", inputs=[image], outputs=[{"name": "label"}])
    assert list(answer.outputs[0].contents.bytes_contents) == [b"bright"]


@pytest.mark.parametrize(
    ("method", "fields", "code", "told"),
    [
        ("ModelReady", {"name": "absent"}, "NOT_FOUND", "Servable not found for request: Latest(absent)"),
        ("ModelReady", {"name": "brightness", "version": "8"}, "NOT_FOUND", "Specific(brightness, 8)"),
        ("ModelReady", {"name": "brightness", "version": "v10"}, "NOT_FOUND", "Specific(brightness, v10)"),
        ("ModelMetadata", {"name": ""}, "NOT_FOUND", "Latest()"),
        ("ModelInfer", {"model_name": "absent"}, "NOT_FOUND", "Latest(absent)"),
        ("ModelInfer", ratio_request(model_version="8"), "NOT_FOUND", "Specific(brightness, 8)"),
        ("ModelInfer", {"model_name": "brightness"}, "INVALID_ARGUMENT", "expected each of image_bytes once"),
        (
            "ModelInfer",
            ratio_request(parameters={"signature_name": text("nope")}),
            "INVALID_ARGUMENT",
            'Serving signature name: "nope" not found',
        ),
        (
            "ModelInfer",
            ratio_request(parameters={"signature_name": messages.InferParameter(int64_param=1)}),
            "INVALID_ARGUMENT",
            "must be the name of a signature",
        ),
        (
            "ModelInfer",
            ratio_request(parameters={"signature_name": messages.InferParameter()}),
            "INVALID_ARGUMENT",
            "the parameter 'signature_name' of the request has no value",
        ),
        (
            "ModelInfer",
            changed(0, parameters={"shared_memory_region": text("x")}),
            "INVALID_ARGUMENT",
            "input 'a' has the parameter 'shared_memory_region', an extension",
        ),
        ("ModelInfer", ratio_request(outputs=[{"name": "nope"}]), "INVALID_ARGUMENT", "has no output 'nope'"),
        ("ModelInfer", changed(0, datatype="FP64"), "INVALID_ARGUMENT", "has datatype FP64, expected FP32"),
        ("ModelInfer", changed(0, datatype=""), "INVALID_ARGUMENT", "input 'a' has the unknown datatype ''"),
        ("ModelInfer", changed(0, shape=[2, -2]), "INVALID_ARGUMENT", "input 'a' has shape [2, -2]; expected integers"),
        ("ModelInfer", changed(0, shape=[2, 3]), "INVALID_ARGUMENT", "has 4 elements, expected 6 for shape [2, 3]"),
        ("ModelInfer", changed(0, shape=[2**62, 2**62]), "INVALID_ARGUMENT", "input 'a' has 4 elements, expected"),
        (
            "ModelInfer",
            changed(0, contents={"fp64_contents": [1, 2, 3, 4]}),
            "INVALID_ARGUMENT",
            "input 'a' has fp64_contents, expected fp32_contents for FP32",
        ),
        ("ModelInfer", raw_request(A), "INVALID_ARGUMENT", "1 raw_input_contents for 2 inputs; send one for each"),
        ("ModelInfer", raw_request(A[:-1], B), "INVALID_ARGUMENT", "'a' has 15 bytes of data, expected 16 for shape"),
        (
            "ModelInfer",
            ratio_request(raw_input_contents=[A, B]),
            "INVALID_ARGUMENT",
            "input 'a' has 'contents' beside the raw_input_contents",
        ),
        ("ModelInfer", {"model_name": "brightness", "inputs": [{}] * 1001}, "INVALID_ARGUMENT", "has 1001 inputs"),
        ("ModelInfer", raw_request(bytes(1_000_000), B), "RESOURCE_EXHAUSTED", "larger than max"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    brightness_rpc: grpc.Channel, method: str, fields: dict[str, Any], code: str, told: str
) -> None:
    got, message = refusal(brightness_rpc, method, **fields)
    assert got == code
    assert told in message


def test_a_deadline_ends_a_call(brightness_rpc: grpc.Channel) -> None:
    count = {"name": "num_iterations", "datatype": "INT64", "shape": [1], "contents": {"int64_contents": [10**5]}}
    fields = {"model_name": "brightness", "parameters": {"signature_name": text("count")}, "inputs": [count]}
    code, _ = refusal(brightness_rpc, **fields, timeout_secs=0.001)
    assert code == "DEADLINE_EXCEEDED"
    assert call(brightness_rpc, "ServerLive").live


def test_calls_are_counted(brightness: Models) -> None:
    with running_rpc(brightness) as (target, inference), grpc.insecure_channel(target) as channel:
        call(channel, "ModelInfer", **ratio_request())
        refusal(channel, model_name="absent")
        page = inference.metrics.page().decode()
    labels = 'model_name="brightness",API="Infer"'
    assert ':tensorflow:serving:request_count{model_name="brightness",status="OK"} 1' in page
    assert ':tensorflow:serving:request_count{model_name="",status="NOT_FOUND"} 1' in page
    assert f':tensorflow:serving:request_latency_count{{{labels},entrypoint="GRPC"}} 1' in page
    assert f':tensorflow:serving:runtime_latency_count{{{labels},runtime="TF1"}} 1' in page


@pytest.mark.parametrize("name", [name for name in DATATYPES if name not in ("FP16", "BF16")])
def test_contents_hold_the_limits_of_every_datatype_and_nothing_beyond(name: str) -> None:
    datatype = DATATYPES[name]
    if name == "BYTES":
        values, beyond = [b"", b"\0\xff"], None
    elif name == "BOOL":
        values, beyond = [False, True], None
    elif datatype.numpy.kind == "f":
        limits = np.finfo(datatype.numpy)
        values, beyond = [float(limits.min), float("-inf")], None
    else:
        lowest, highest = np.iinfo(datatype.numpy).min, np.iinfo(datatype.numpy).max
        values, beyond = [int(lowest), int(highest)], int(highest) + 1
    field = {
        "BOOL": "bool",
        "BYTES": "bytes",
        "FP32": "fp32",
        "FP64": "fp64",
        "INT64": "int64",
        "UINT64": "uint64",
    }.get(name, "int" if name.startswith("INT") else "uint")

    def decode(values: list[Any]) -> Any:
        tensor = {"name": "x", "datatype": name, "shape": [2, 1], "contents": {f"{field}_contents": values}}
        spec = TensorSpec(dtype=datatype.tensorflow, shape=None)
        request = decode_request(messages.ModelInferRequest(inputs=[tensor]))
        return decode_inputs(request, SignatureSpec(name="s", method_name="", inputs={"x": spec}, outputs={}))["x"]

    assert decode(values).tolist() == [[value] for value in values]
    assert decode(values).dtype == datatype.numpy
    if beyond is not None and field in ("int", "uint") and name not in ("INT32", "UINT32"):
        with pytest.raises(RequestError, match=f"{beyond} is outside the range of {name}"):
            decode([values[0], beyond])


@pytest.mark.parametrize("name", ["FP16", "BF16"])
def test_16_bit_floats_are_raw(name: str) -> None:
    tensor = {"name": "x", "datatype": name, "shape": [1], "contents": {"fp32_contents": [1.0]}}
    signature = SignatureSpec(
        name="s", method_name="", inputs={"x": TensorSpec(dtype=DATATYPES[name].tensorflow, shape=None)}, outputs={}
    )
    with pytest.raises(RequestError, match=f"{name} has no form in 'contents'; send it in raw_input_contents"):
        decode_inputs(decode_request(messages.ModelInferRequest(inputs=[tensor])), signature)
    del tensor["contents"]
    raw = messages.ModelInferRequest(inputs=[tensor], raw_input_contents=[b"\0\x3c"])
    assert decode_inputs(decode_request(raw), signature)["x"].tobytes() == b"\0\x3c"


VALID = messages.ModelInferRequest(**ratio_request(id="1", outputs=[{"name": "ratio"}])).SerializeToString()
RAW = messages.ModelInferRequest(**raw_request(A, B)).SerializeToString()
DOCUMENTED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL"}


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=100),
        st.tuples(
            st.sampled_from([VALID, RAW]), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4)
        ),
    )
)
def test_random_and_changed_messages_give_documented_errors_and_the_server_lives(
    brightness_rpc: grpc.Channel, sent: Any
) -> None:
    if isinstance(sent, bytes):
        body = sent
    else:
        changed_body = bytearray(sent[0])
        for position, byte in sent[1]:
            changed_body[position % len(changed_body)] = byte
        body = bytes(changed_body)
    ask = brightness_rpc.unary_unary(f"/{SERVICE}/ModelInfer")
    try:
        messages.ModelInferResponse.FromString(ask(body, timeout=600))
    except grpc.RpcError as e:
        assert e.code().name in DOCUMENTED
        # INTERNAL is gRPC's code for bytes that are no message of the type.
        assert e.code() is not grpc.StatusCode.INTERNAL or e.details().startswith("the request is not a inference.")
    assert call(brightness_rpc, "ServerLive").live
