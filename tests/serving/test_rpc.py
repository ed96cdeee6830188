"""TensorFlow Serving's gRPC API, over a real channel to a real SavedModel."""

import base64
import pathlib
import threading
import time
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from brightness_export import CLASS_NAMES, grey_pixels, jpeg
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from running_server import running_rpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.models.manager import VersionManager
from serving.models.model import Model, Models
from serving.models.model_config import ModelConfig
from serving.protocol.status import Code, RequestError
from serving.server.reload import make_reload

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
TIMEOUT_SECS = 600


def predict_request(model: str, inputs: dict[str, Any], signature: str = "", **spec: Any) -> predict_pb2.PredictRequest:
    import tensorflow as tf

    request = predict_pb2.PredictRequest()
    fill_spec(request.model_spec, model, signature, **spec)
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def fill_spec(
    spec: Any, model: str, signature: str = "", *, version: int | None = None, label: str | None = None
) -> None:
    spec.name, spec.signature_name = model, signature
    if version is not None:
        spec.version.value = version
    if label is not None:
        spec.version_label = label


def examples_of(*values: dict[str, float], context: dict[str, float] | None = None) -> Any:
    message = input_pb2.Input()
    into = message.example_list if context is None else message.example_list_with_context
    for value in values:
        fill_example(into.examples.add(), value)
    if context is not None:
        fill_example(into.context, context)
    return message


def fill_example(example: Any, value: dict[str, float]) -> None:
    example.features.SetInParent()
    for name, number in value.items():
        example.features.feature[name].float_list.value.append(number)


def predict(channel: grpc.Channel, request: Any, **options: Any) -> Any:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    return stub.Predict(request, **{"timeout": TIMEOUT_SECS, **options})


def arrays(response: Any) -> dict[str, Any]:
    import tensorflow as tf

    return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}


def as_json(array: Any) -> Any:
    """Returns what the REST API writes for an output, except that it is not rounded to the shortest digits."""
    return np.vectorize(bytes.decode, otypes=[object])(array).tolist() if array.dtype == object else array.tolist()


def refusal(ask: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        ask()
    return caught.value.code(), caught.value.details()


B64 = base64.b64encode


@pytest.mark.parametrize(
    ("signature", "inputs", "in_json"),
    [
        ("", {"image_bytes": [jpeg(0), jpeg(255)]}, [{"b64": B64(jpeg(level)).decode()} for level in (0, 255)]),
        ("", {"image_bytes": [b"not an image"]}, [{"b64": B64(b"not an image").decode()}]),
        ("images", {"images": grey_pixels(250, 5)}, grey_pixels(250, 5).tolist()),
        (
            "ratio",
            {"a": np.float32([[1, -1], [3, 0]]), "b": np.int64([1, 2])},
            {"a": [[1, -1], [3, 0]], "b": [1, 2]},
        ),
        ("count", {"num_iterations": np.int64([3])}, [3]),
    ],
)
def test_rest_and_grpc_answer_alike(
    http: httpx.Client, brightness_rpc: grpc.Channel, signature: str, inputs: dict[str, Any], in_json: Any
) -> None:
    body = {"inputs": in_json, **({"signature_name": signature} if signature else {})}
    answered = http.post("/v1/models/brightness:predict", json=body).json()["outputs"]
    outputs = arrays(predict(brightness_rpc, predict_request("brightness", inputs, signature)))
    if not isinstance(answered, dict):
        answered = dict.fromkeys(outputs, answered)
    assert set(outputs) == set(answered)
    for name, array in outputs.items():
        if array.dtype.kind == "f":
            np.testing.assert_array_equal(array, np.array(answered[name], array.dtype))
        else:
            assert as_json(array) == answered[name]


@pytest.mark.parametrize(
    ("method", "signature", "examples", "context"),
    [
        ("regress", "regress_x_to_y", [{"x": 1.0}, {"x": 2.0}], None),
        ("classify", "classify_x_to_y", [{"x": 1.0}, {"x": 2.0}], None),
        ("classify", "classify_by_name", [{}, {"x": 2.0}], {"x": 1.0}),
    ],
)
def test_rest_and_grpc_answer_examples_alike(
    half_plus_two: httpx.Client,
    half_plus_two_rpc: grpc.Channel,
    method: str,
    signature: str,
    examples: list[Any],
    context: Any,
) -> None:
    body = {"signature_name": signature, "examples": examples, **({} if context is None else {"context": context})}
    answered = half_plus_two.post(f"/v1/models/half_plus_two:{method}", json=body).json()["results"]
    stub = prediction_service_pb2_grpc.PredictionServiceStub(half_plus_two_rpc)
    if method == "regress":
        request, call = regression_pb2.RegressionRequest(), stub.Regress
    else:
        request, call = classification_pb2.ClassificationRequest(), stub.Classify
    fill_spec(request.model_spec, "half_plus_two", signature)
    request.input.CopyFrom(examples_of(*examples, context=context))
    response = call(request, timeout=TIMEOUT_SECS)
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("half_plus_two", 123, signature)
    if method == "regress":
        assert [regression.value for regression in response.result.regressions] == answered
    else:
        rows = response.result.classifications
        assert [[[found.label, found.score] for found in row.classes] for row in rows] == answered


def test_the_answer_names_model_version_and_signature_and_holds_what_was_asked_for(
    brightness_rpc: grpc.Channel,
) -> None:
    def ask(**spec: Any) -> Any:
        request = predict_request("brightness", {"image_bytes": [jpeg(255)]}, **spec)
        request.output_filter.extend(["label", "class_id"])
        return predict(brightness_rpc, request)

    response = ask()
    assert response.model_spec.name == "brightness"
    assert response.model_spec.version.value == 10
    assert response.model_spec.signature_name == "serving_default"
    # In the fields of their dtypes, which clients read directly.
    assert list(response.outputs["label"].string_val) == [b"bright"]
    assert list(response.outputs["class_id"].int64_val) == [CLASS_NAMES.index("bright")]
    assert set(response.outputs) == {"label", "class_id"}
    assert ask(version=9).model_spec.version.value == 9
    assert ask(label="canary").model_spec.version.value == 9


def multi_request(*tasks: tuple[str, str, str], examples: Any = None) -> Any:
    request = inference_pb2.MultiInferenceRequest()
    for model, signature, method in tasks:
        task = request.tasks.add(method_name=method)
        fill_spec(task.model_spec, model, signature)
    request.input.CopyFrom(examples_of({"x": 1.0}, {"x": 2.0}) if examples is None else examples)
    return request


def test_several_signatures_answer_the_same_examples(half_plus_two_rpc: grpc.Channel) -> None:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(half_plus_two_rpc)
    tasks = ("half_plus_two", "regress_x_to_y", REGRESS), ("half_plus_two", "classify_x_to_y", CLASSIFY)
    regression, classification = stub.MultiInference(multi_request(*tasks), timeout=TIMEOUT_SECS).results
    assert regression.model_spec.signature_name == "regress_x_to_y"
    assert regression.model_spec.version.value == 123
    assert [found.value for found in regression.regression_result.regressions] == [2.5, 3.0]
    scores = [row.classes[0].score for row in classification.classification_result.classifications]
    assert scores == [2.5, 3.0]


@pytest.mark.parametrize(
    ("tasks", "code", "told"),
    [
        ([], "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ([("half_plus_two", "regress_x_to_y", REGRESS)] * 2, "INVALID_ARGUMENT", "Duplicate evaluation of signature: "),
        (
            [("half_plus_two", "nope", REGRESS)],
            "INVALID_ARGUMENT",
            "Requested signature not found in model graph: nope",
        ),
        ([("half_plus_two", "column", REGRESS)], "INVALID_ARGUMENT", "No regression inputs found in SignatureDef"),
        (
            [("half_plus_two", "column", "tensorflow/serving/predict")],
            "UNIMPLEMENTED",
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
        (
            [("half_plus_two", "regress_x_to_y", REGRESS), ("other", "classify_x_to_y", CLASSIFY)],
            "INVALID_ARGUMENT",
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            [("half_plus_two", "regress_x_to_y", REGRESS), ("", "classify_x_to_y", CLASSIFY)],
            "INVALID_ARGUMENT",
            "Found ModelSpec with an empty model name.",
        ),
    ],
)
def test_tasks_that_do_not_fit_are_refused(half_plus_two_rpc: grpc.Channel, tasks: Any, code: str, told: str) -> None:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(half_plus_two_rpc)
    got, message = refusal(lambda: stub.MultiInference(multi_request(*tasks), timeout=TIMEOUT_SECS))
    assert got.name == code
    assert told in message


def with_filter(*names: str) -> predict_pb2.PredictRequest:
    request = predict_request("brightness", {"image_bytes": [jpeg(1)]})
    request.output_filter.extend(names)
    return request


def claiming(*sizes: int) -> predict_pb2.PredictRequest:
    request = predict_request("brightness", {"images": np.float32([1])}, "images")
    del request.inputs["images"].tensor_shape.dim[:]
    request.inputs["images"].tensor_content = b""
    request.inputs["images"].float_val[:] = [1.0]
    for size in sizes:
        request.inputs["images"].tensor_shape.dim.add(size=size)
    return request


@pytest.mark.parametrize(
    ("make", "code", "told"),
    [
        (lambda: predict_pb2.PredictRequest(), "INVALID_ARGUMENT", "Missing ModelSpec"),
        (lambda: predict_request("", {}), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (lambda: predict_request("nope", {}), "NOT_FOUND", "Servable not found for request: Latest(nope)"),
        (
            lambda: predict_request("brightness", {}, version=3),
            "NOT_FOUND",
            "Servable not found for request: Specific(brightness, 3)",
        ),
        (
            lambda: predict_request("brightness", {}, label="stable"),
            "INVALID_ARGUMENT",
            "Unrecognized servable version label: stable",
        ),
        (
            lambda: predict_request("brightness", {}, "nope"),
            "FAILED_PRECONDITION",
            'Serving signature key "nope" not found.',
        ),
        (
            lambda: predict_request("brightness", {"a": [1.0], "c": [1.0]}, "ratio"),
            "INVALID_ARGUMENT",
            "input size does not match signature: 2!=2 len({a,c}) != len({a,b}). Sent extra: {c}. "
            "Missing but required: {b}.",
        ),
        (
            lambda: predict_request("brightness", {"num_iterations": np.float32([1])}, "count"),
            "INVALID_ARGUMENT",
            "Expects arg[0] to be int64 but float is provided (num_iterations)",
        ),
        (
            lambda: with_filter("nope"),
            "INVALID_ARGUMENT",
            "output tensor alias not found in signature: nope Outputs expected to be in the set "
            "{class_id,label,probabilities,status}.",
        ),
        (lambda: with_filter("label", "label"), "INVALID_ARGUMENT", "duplicate output tensor alias: label"),
        (lambda: claiming(10**12), "INVALID_ARGUMENT", "tensor parsing error: images: its shape claims 3999999999996"),
        (lambda: claiming(10**12, 10**12), "INVALID_ARGUMENT", "has more elements than can be counted"),
        (lambda: claiming(-1, 2), "INVALID_ARGUMENT", "tensor parsing error: images: its shape [-1, 2] has a negative"),
        (
            lambda: predict_request("brightness", {"images": np.zeros([1, 1, 3], np.float32)}, "images"),
            "INVALID_ARGUMENT",
            "input 'images' of signature 'images' has shape [1, 1, 3], expected [-1, 8, 8, 3]",
        ),
        (
            lambda: predict_request("brightness", {"image_bytes": [b""] * 17}),
            "INVALID_ARGUMENT",
            "Task size 17 is larger than maximum input batch size 16",
        ),
        (
            lambda: predict_request("brightness", {"image_bytes": [bytes(1_000_001)]}),
            "RESOURCE_EXHAUSTED",
            "Received message larger than max",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_code(
    brightness_rpc: grpc.Channel, make: Any, code: str, told: str
) -> None:
    got, message = refusal(lambda: predict(brightness_rpc, make()))
    assert (got.name, told in message) == (code, True), message


def test_a_compressed_message_is_limited_by_what_it_becomes(brightness_rpc: grpc.Channel) -> None:
    request = predict_request("brightness", {"image_bytes": [bytes(50_000_000)]})
    code, message = refusal(lambda: predict(brightness_rpc, request, compression=grpc.Compression.Gzip))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in message
    small = predict_request("brightness", {"image_bytes": [jpeg(255)]})
    response = predict(brightness_rpc, small, compression=grpc.Compression.Gzip)
    assert arrays(response)["label"].tolist() == [b"bright"]


def test_a_long_message_is_cut_to_what_a_header_holds(brightness_rpc: grpc.Channel) -> None:
    code, message = refusal(lambda: predict(brightness_rpc, predict_request("é" * 20_000, {})))
    assert code is grpc.StatusCode.NOT_FOUND
    assert message.endswith("é...TRUNCATED")
    assert len(message.encode()) <= 1024 + len("...TRUNCATED")


def test_bytes_that_are_no_request_are_refused(brightness_rpc: grpc.Channel) -> None:
    call = brightness_rpc.unary_unary("/tensorflow.serving.PredictionService/Predict")
    code, message = refusal(lambda: call(b"\xff\xff\xff", timeout=TIMEOUT_SECS))
    assert code is grpc.StatusCode.INTERNAL
    assert message.startswith("the request is not a tensorflow.serving.PredictRequest")


def test_signatures_and_examples_that_do_not_fit_are_refused(half_plus_two_rpc: grpc.Channel) -> None:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(half_plus_two_rpc)

    def told(signature: str, given: Any) -> tuple[str, str]:
        request = regression_pb2.RegressionRequest(input=given)
        fill_spec(request.model_spec, "half_plus_two", signature)
        code, message = refusal(lambda: stub.Regress(request, timeout=TIMEOUT_SECS))
        return code.name, message

    one = examples_of({"x": 1.0})
    assert told("nope", one) == ("INVALID_ARGUMENT", "No signature was found with the name: nope")
    assert told("regress_x_to_y", None) == ("INVALID_ARGUMENT", "Input is empty.")
    assert told("regress_x_to_y", examples_of(context={"x": 1.0})) == ("INVALID_ARGUMENT", "Input is empty.")
    assert told("classify_x_to_y", one)[1].startswith("No regression outputs found in SignatureDef")
    code, message = told("regress_x_to_y", examples_of({}))
    assert code == "INVALID_ARGUMENT"
    assert "Feature: x (data type: float) is required" in message


def test_metadata_holds_the_signatures(half_plus_two: httpx.Client, half_plus_two_rpc: grpc.Channel) -> None:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(half_plus_two_rpc)

    def ask(*fields: str) -> Any:
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
        fill_spec(request.model_spec, "half_plus_two")
        return stub.GetModelMetadata(request, timeout=TIMEOUT_SECS)

    response = ask("signature_def")
    assert (response.model_spec.name, response.model_spec.version.value) == ("half_plus_two", 123)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    in_rest = half_plus_two.get("/v1/models/half_plus_two/metadata").json()["metadata"]["signature_def"]
    assert set(signatures.signature_def) == set(in_rest["signature_def"])
    assert refusal(ask)[1] == "GetModelMetadataRequest must specify at least one metadata_field"
    assert refusal(lambda: ask("weights"))[1] == "Metadata field weights is not supported"


def test_status_of_one_and_of_all_versions(brightness_rpc: grpc.Channel) -> None:
    stub = model_service_pb2_grpc.ModelServiceStub(brightness_rpc)

    def ask(model: str, **spec: Any) -> Any:
        request = get_model_status_pb2.GetModelStatusRequest()
        fill_spec(request.model_spec, model, **spec)
        return stub.GetModelStatus(request, timeout=TIMEOUT_SECS)

    available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert [(v.version, v.state, v.status.error_code) for v in ask("brightness").model_version_status] == [
        (9, available, 0),
        (10, available, 0),
    ]
    assert [v.version for v in ask("brightness", version=9).model_version_status] == [9]
    code, message = refusal(lambda: ask("brightness", version=3))
    assert (code, message) == (grpc.StatusCode.NOT_FOUND, "Could not find version 3 of model brightness")
    assert refusal(lambda: ask("nope"))[1] == "Could not find any versions of model nope"
    empty = get_model_status_pb2.GetModelStatusRequest()
    assert refusal(lambda: stub.GetModelStatus(empty, timeout=TIMEOUT_SECS))[1] == "Missing ModelSpec"


def reload_request(*names: str) -> model_management_pb2.ReloadConfigRequest:
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.SetInParent()
    for name in names:
        request.config.model_config_list.config.add(name=name, base_path=f"/models/{name}")
    return request


def test_a_new_configuration_goes_to_what_serves_models(half_plus_two_models: Models) -> None:
    asked: list[str] = []

    def reload(config: Any) -> None:
        asked.extend(model.name for model in config.model_config_list.config)
        if "bad" in asked:
            raise RequestError(Code.INVALID_ARGUMENT, "Duplicate model name: bad")

    with running_rpc(half_plus_two_models, reload=reload) as (target, _), grpc.insecure_channel(target) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        assert stub.HandleReloadConfigRequest(reload_request("a", "b"), timeout=TIMEOUT_SECS).status.error_code == 0
        assert asked == ["a", "b"]
        code, message = refusal(lambda: stub.HandleReloadConfigRequest(reload_request("bad"), timeout=TIMEOUT_SECS))
        assert (code.name, message) == ("INVALID_ARGUMENT", "Duplicate model name: bad")


def test_the_version_manager_serves_the_models_beside_those_of_the_start(
    half_plus_two_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    base_path = tmp_path / "half"
    base_path.mkdir()
    (base_path / "5").symlink_to(half_plus_two_path / "00000123")
    configs = [ModelConfig("half", base_path)]
    manager = VersionManager(Models())
    manager.start(configs, poll_wait_secs=0)
    reload = make_reload(manager, configs)
    with running_rpc(manager.models, reload=reload) as (target, _), grpc.insecure_channel(target) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)

        def ask(name: str, path: pathlib.Path) -> Any:
            request = reload_request(name)
            (config,) = request.config.model_config_list.config
            config.base_path, config.model_platform = str(path), "tensorflow"
            config.version_labels["stable"] = 5
            return stub.HandleReloadConfigRequest(request, timeout=TIMEOUT_SECS)

        assert ask("other", base_path).status.error_code == 0
        request = predict_request("other", {"x": np.float32([1])}, label="stable")
        assert arrays(predict(channel, request))["y"].tolist() == [2.5]
        assert refusal(lambda: predict(channel, predict_request("half", {})))[0] is grpc.StatusCode.NOT_FOUND
        code, message = refusal(lambda: ask("outside", half_plus_two_path))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert f"is not in a directory of the models that this server was started with ({tmp_path})" in message
        assert refusal(lambda: ask("absent", tmp_path / "absent"))[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert refusal(lambda: ask("up", tmp_path / ".." / "up"))[0] is grpc.StatusCode.PERMISSION_DENIED
        assert manager.models.names == ["other"]


def test_a_new_configuration_is_refused_where_models_stay(half_plus_two_rpc: grpc.Channel) -> None:
    stub = model_service_pb2_grpc.ModelServiceStub(half_plus_two_rpc)
    code, message = refusal(lambda: stub.HandleReloadConfigRequest(reload_request("a"), timeout=TIMEOUT_SECS))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert message.startswith("Cannot transition to requested config.")
    code, message = refusal(
        lambda: stub.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(), timeout=TIMEOUT_SECS)
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message.endswith("Only ModelConfigList is currently supported")


def count_request(num_iterations: int) -> predict_pb2.PredictRequest:
    return predict_request("brightness", {"num_iterations": np.int64([num_iterations])}, "count")


def test_the_clients_deadline_ends_what_waits(brightness: Models) -> None:
    with running_rpc(brightness) as (target, inference), grpc.insecure_channel(target) as channel:
        request = count_request(150_000)
        code, _ = refusal(lambda: predict(channel, request, timeout=0.05))  # this limit is tested
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for(inference, b'status="DEADLINE_EXCEEDED"} 1')
        wait_for(inference, b"serving_requests_in_progress{} 0")


def test_a_call_that_is_cancelled_is_not_run(brightness: Models) -> None:
    with running_rpc(brightness) as (target, inference), grpc.insecure_channel(target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        queue = HeldQueue()
        servable = brightness.get("brightness").find()  # type: ignore[union-attr]
        real, servable._queues = servable._queues, {**servable._queues, "count": queue}
        try:
            call = stub.Predict.future(count_request(1), timeout=TIMEOUT_SECS)
            assert queue.submitted.wait(timeout=TIMEOUT_SECS)
            call.cancel()
            wait_for(inference, b'status="CANCELLED"} 1')
        finally:
            servable._queues = real
        assert queue.answer.cancelled()


class HeldQueue:
    """Never runs what it is given."""

    def __init__(self) -> None:
        from concurrent.futures import Future

        self.answer: Future[dict[str, Any]] = Future()
        self.submitted = threading.Event()

    def submit(self, inputs: Any, *, deadline_secs: float | None = None) -> Any:
        assert deadline_secs is not None
        self.submitted.set()
        return self.answer

    def close(self) -> None: ...


def wait_for(inference: Any, line: bytes) -> None:
    while line not in inference.metrics.page():
        time.sleep(0.01)


def test_calls_are_counted_as_those_of_rest(half_plus_two_models: Models) -> None:
    with running_rpc(half_plus_two_models) as (target, inference), grpc.insecure_channel(target) as channel:
        predict(channel, predict_request("half_plus_two", {"x": np.float32([1])}))
        refusal(lambda: predict(channel, predict_request("half_plus_two", {})))
        refusal(lambda: predict(channel, predict_request("nope", {})))
        page = inference.metrics.page().decode()
    count = ":tensorflow:serving:request_count"
    assert f'{count}{{model_name="half_plus_two",status="OK"}} 1\n' in page
    assert f'{count}{{model_name="half_plus_two",status="INVALID_ARGUMENT"}} 1\n' in page
    assert f'{count}{{model_name="",status="NOT_FOUND"}} 1\n' in page
    labels = 'model_name="half_plus_two",API="Predict"'
    assert f':tensorflow:serving:request_latency_count{{{labels},entrypoint="GRPC"}} 1\n' in page
    assert f':tensorflow:serving:runtime_latency_count{{{labels},runtime="TF1"}} 1\n' in page


def test_health_follows_the_models_and_the_end_of_the_server(half_plus_two_models: Models) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    unloaded = half_plus_two_models.get("half_plus_two")
    assert unloaded is not None
    path = next(iter(unloaded.servables.values())).path
    models = Models(Model(name="half_plus_two", base_path=path))
    told: list[Any] = []
    with running_rpc(models) as (target, _):
        channel = grpc.insecure_channel(target)
        stub = health_pb2_grpc.HealthStub(channel)

        def check(service: str = "") -> Any:
            return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_SECS).status

        watch = stub.Watch(health_pb2.HealthCheckRequest(service="tensorflow.serving.PredictionService"))
        assert next(watch).status == not_serving
        assert check() == not_serving
        models.replace(unloaded)
        assert next(watch).status == serving
        for service in ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService", "ModelService"):
            assert check(service) == serving
        assert refusal(lambda: check("nope"))[0] is grpc.StatusCode.NOT_FOUND
        watching = threading.Thread(target=lambda: told.extend(answer.status for answer in watch))
        watching.start()
    watching.join(timeout=TIMEOUT_SECS)
    channel.close()
    assert told == [not_serving]


def test_reflection_describes_the_services_to_a_stock_client(half_plus_two_models: Models) -> None:
    with running_rpc(half_plus_two_models) as (target, _), grpc.insecure_channel(target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        assert {
            "tensorflow.serving.PredictionService",
            "tensorflow.serving.ModelService",
            "grpc.health.v1.Health",
        } <= services
        service = DescriptorPool(database).FindServiceByName("tensorflow.serving.PredictionService")
        assert service.methods_by_name["Predict"].input_type.full_name == "tensorflow.serving.PredictRequest"
        # The client's call is still open here, and does not hold up the end of the server.
        begin_secs = time.monotonic()
    assert time.monotonic() - begin_secs < 30
