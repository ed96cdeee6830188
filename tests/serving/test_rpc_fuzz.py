"""Random and mutated requests over gRPC: nothing but documented codes, and the server lives."""

from typing import Any

import grpc
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from test_rpc import TIMEOUT_SECS, arrays, predict, predict_request

# Those that https://www.tensorflow.org/tfx/serving and gRPC document for a request that does not fit; INTERNAL only for
# bytes that are no message.
DOCUMENTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}
BASES = (
    ("serving_default", "image_bytes", [b"x"]),
    ("images", "images", np.zeros([1, 8, 8, 3], np.float32)),
    ("reverse", "text", [b"a", b"b"]),
)
SIZES = st.one_of(st.integers(0, 20), st.sampled_from([-1, -(2**63), 2**31, 10**12, 2**63 - 1]))
NUMBERS = st.integers(-(2**31), 2**31 - 1)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "float_val": st.floats(width=32),
    "double_val": st.floats(),
    "int_val": NUMBERS,
    "half_val": NUMBERS,
    "int64_val": st.integers(-(2**63), 2**63 - 1),
    "bool_val": st.booleans(),
    "string_val": st.binary(max_size=20),
}


@st.composite
def requests(draw: st.DrawFn) -> predict_pb2.PredictRequest:
    signature, name, value = draw(st.sampled_from(BASES))
    request = predict_request("brightness", {name: value}, signature)
    tensor = request.inputs[name]
    for what in draw(st.lists(st.sampled_from(["shape", "dtype", "values", "content", "name", "spec"]), max_size=3)):
        if what == "shape":
            del tensor.tensor_shape.dim[:]
            for size in draw(st.lists(SIZES, max_size=5)):
                tensor.tensor_shape.dim.add(size=size)
            tensor.tensor_shape.unknown_rank = draw(st.booleans())
        elif what == "dtype":
            tensor.dtype = draw(st.integers(0, 130))
        elif what == "values":
            tensor.tensor_content = b""
            field = draw(st.sampled_from(sorted(VALUES)))
            getattr(tensor, field)[:] = draw(st.lists(VALUES[field], max_size=20))
        elif what == "content":
            tensor.tensor_content = draw(st.binary(max_size=100))
        elif what == "name":
            request.inputs[draw(st.text(max_size=5))].CopyFrom(tensor)
        else:
            request.model_spec.signature_name = draw(st.sampled_from(["", "images", "reverse", "\x00"]))
            request.model_spec.version.value = draw(st.sampled_from([9, 10, -1, 2**63 - 1]))
            request.output_filter.extend(draw(st.lists(st.sampled_from(["label", "nope"]), max_size=3)))
    return request


def code_of(ask: Any) -> grpc.StatusCode:
    try:
        ask()
    except grpc.RpcError as e:
        assert "Exception" not in e.details()
        code: grpc.StatusCode = e.code()
        return code
    return grpc.StatusCode.OK


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests())
def test_mutated_requests_get_documented_codes(brightness_rpc: grpc.Channel, request: Any) -> None:
    assert code_of(lambda: predict(brightness_rpc, request)) in DOCUMENTED


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata"]), st.data())
def test_mutated_bytes_get_documented_codes(brightness_rpc: grpc.Channel, method: str, data: st.DataObject) -> None:
    body = bytearray(predict_request("brightness", {"text": [b"a", b"b"]}, "reverse").SerializeToString())
    for _ in range(data.draw(st.integers(0, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    call = brightness_rpc.unary_unary(f"/tensorflow.serving.PredictionService/{method}")
    code = code_of(lambda: call(bytes(body), timeout=TIMEOUT_SECS))
    assert code in DOCUMENTED | {grpc.StatusCode.INTERNAL}


def test_the_server_still_answers_after_them(brightness_rpc: grpc.Channel) -> None:
    response = predict(brightness_rpc, predict_request("brightness", {"text": [b"ab"]}, "reverse"))
    assert arrays(response)["length"].tolist() == [2]
    unknown = prediction_service_pb2_grpc.PredictionServiceStub(brightness_rpc)
    assert unknown is not None
    nothing = brightness_rpc.unary_unary("/tensorflow.serving.PredictionService/Nothing")
    assert code_of(lambda: nothing(b"", timeout=TIMEOUT_SECS)) is grpc.StatusCode.UNIMPLEMENTED
