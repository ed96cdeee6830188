"""SavedModels that are no export of ours: TensorFlow Serving's documented requests, and what is found in a path."""

import json
import pathlib
import shutil
from typing import Any

import httpx
import pytest

from serving.batching.requests import one_by_one
from serving.models.base_path import find_model
from serving.models.model import Model
from serving.models.servable import Serving
from serving.protocol.status import RequestError
from trainer.errors import ArtifactError

MODEL = "/v1/models/half_plus_two"


def ask(client: httpx.Client, method: str, body: Any) -> Any:
    response = client.post(f"{MODEL}:{method}", json=body)
    return response.json() if response.status_code == 200 else (response.status_code, response.json()["error"])


@pytest.mark.parametrize(
    ("method", "body", "answer"),
    [
        # https://github.com/tensorflow/serving, README; https://www.tensorflow.org/tfx/serving/api_rest
        ("predict", {"instances": [1.0, 2.0, 5.0]}, {"predictions": [2.5, 3.0, 4.5]}),
        ("predict", {"inputs": [1.0, 2.0, 5.0]}, {"outputs": [2.5, 3.0, 4.5]}),
        ("predict", {"instances": [[1.0], [2.0]]}, {"predictions": [[2.5], [3.0]]}),
        ("predict", {"instances": [{"x": 1}, {"x": 2}]}, {"predictions": [2.5, 3.0]}),
        ("predict", {"inputs": 5.0}, {"outputs": 4.5}),
        ("predict", {"signature_name": "column", "instances": [1.0, 2.0, 5.0]}, {"predictions": [2.5, 3.0, 4.5]}),
        ("predict", {"instances": [1.0] * 40}, {"predictions": [2.5] * 40}),
        (
            "regress",
            {"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}, {"x": [2.0]}]},
            {"results": [2.5, 3.0]},
        ),
        (
            "classify",
            {"signature_name": "classify_x_to_y", "examples": [{"x": 1.0}, {"x": 2.0}]},
            {"results": [[["", 2.5]], [["", 3.0]]]},
        ),
        (
            "classify",
            {"signature_name": "classify_by_name", "context": {"x": 1.0}, "examples": [{}, {"x": 2.0}]},
            {"results": [[["2.5", 2.5], ["3.5", 3.5]], [["3.0", 3.0], ["4.0", 4.0]]]},
        ),
    ],
)
def test_requests_as_the_documentation_of_tensorflow_serving_has_them(
    half_plus_two: httpx.Client, method: str, body: Any, answer: Any
) -> None:
    assert ask(half_plus_two, method, body) == answer


def test_what_the_graph_does_not_take_is_refused_with_both_shapes(half_plus_two: httpx.Client) -> None:
    status, told = ask(half_plus_two, "predict", {"signature_name": "pairs", "instances": [[1.0, 2.0, 3.0]]})
    assert status == 400
    assert "Matrix size-incompatible" in told
    assert "input 'x' of signature 'pairs' has shape [1, 3], expected [-1, 2], where -1 is any size" in told


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"signature_name": "column", "examples": [{"x": 1.0}]}, "signature 'column' is not one for :regress"),
        ({"signature_name": "regress_x_to_y"}, "key 'examples' is expected and was not found"),
        ({"signature_name": "regress_x_to_y", "examples": {"x": 1}}, "'examples' value to be an list/array"),
        ({"signature_name": "regress_x_to_y", "examples": []}, "'examples' value is an empty array"),
        ({"signature_name": "regress_x_to_y", "examples": [1]}, "Example must be JSON object but got 1"),
        ({"signature_name": "regress_x_to_y", "examples": [{"x": [1, 2.5]}]}, "elements that are not all of one type"),
        ({"signature_name": "regress_x_to_y", "examples": [{"x": None}]}, "elements that are not all of one type"),
        ({"signature_name": "regress_x_to_y", "examples": [{"x": 2**63}]}, "Only int64_t is supported"),
        ({"signature_name": "regress_x_to_y", "examples": [{"x": 1}]}, "Data types don't match"),
        ({"signature_name": "regress_x_to_y", "examples": [{}]}, "Feature: x (data type: float) is required"),
        ({"signature_name": "nope", "examples": [{}]}, 'signature name: "nope" not found'),
    ],
)
def test_examples_that_do_not_fit_are_refused_by_name(half_plus_two: httpx.Client, body: Any, told: str) -> None:
    status, message = ask(half_plus_two, "regress", body)
    assert status == 400
    assert told in message


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"inputs": 5.0}, "Batching Run() input tensors must have at least one dimension"),
        ({"signature_name": "total", "inputs": [1.0, 2.0]}, "Batched output tensor has 0 dimensions"),
        ({"signature_name": "first", "inputs": [1.0, 2.0]}, "Batched output tensor's 0th dimension does not equal"),
        ({"instances": [1.0] * 5}, "Task size 5 is larger than maximum input batch size 4"),
    ],
)
def test_what_cannot_be_batched_is_refused_where_there_is_batching(
    half_plus_two_path: pathlib.Path, body: Any, told: str
) -> None:
    from serving.rest.rest_server import decode_predict

    model = Model(
        name="half_plus_two", base_path=half_plus_two_path, serving=Serving(make_queue=one_by_one(max_batch_size=4))
    )
    model.load()
    with pytest.raises(RequestError) as caught:
        decoded = decode_predict(json.dumps(body).encode(), model.find())
        decoded.encode(model.find().run(decoded.signature_name, decoded.inputs))
    assert caught.value.http_status == 400
    assert told in caught.value.message


def test_a_base_path_and_a_savedmodel_by_itself_are_called_after_their_directories(
    half_plus_two_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    one_version = half_plus_two_path / "00000123"
    shutil.copytree(one_version, tmp_path / "mine")
    assert find_model(half_plus_two_path) == (half_plus_two_path, "half_plus_two", False)
    assert find_model(one_version) == (one_version, "half_plus_two", False)
    assert find_model(tmp_path / "mine") == (tmp_path / "mine", "mine", False)
    assert list(Model(name="m", base_path=half_plus_two_path).servables) == [123]
    assert list(Model(name="m", base_path=one_version).servables) == [123]
    assert list(Model(name="m", base_path=tmp_path / "mine").servables) == [1]


def test_an_export_is_found_with_its_name(export_dir: pathlib.Path) -> None:
    assert find_model(export_dir) == (export_dir / "saved_model" / "brightness", "brightness", True)
    assert find_model(export_dir / "saved_model" / "brightness").is_export is False


def test_what_cannot_be_served_is_told_with_a_command_for_what_it_is(
    export_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def refusal(path: pathlib.Path) -> str:
        with pytest.raises(ArtifactError) as caught:
            find_model(path)
        return str(caught.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert refusal(empty).startswith(f"{empty} is not an export (it holds no signature.json), not a SavedModel")
    assert refusal(empty).endswith("make an export with: trainer export RUN --out EXPORT")
    assert refusal(tmp_path / "absent").startswith(f"{tmp_path / 'absent'} does not exist")
    run = tmp_path / "a run"
    run.mkdir()
    (run / "run.json").touch()
    assert refusal(run).endswith(f"export it with: trainer export '{run}' --out EXPORT")
    published = tmp_path / "published"
    (published / "1").mkdir(parents=True)
    shutil.copy(export_dir / "signature.json", published / "1")
    (published / "current").symlink_to("1")
    assert refusal(published).endswith(f"serve the current one with: trainer serve {published / 'current'}")
    models = export_dir / "saved_model"
    assert refusal(models).endswith(f"serve one with: trainer serve {models / 'brightness'}")
    too_high = tmp_path / "high" / str(2**63)
    too_high.mkdir(parents=True)
    (too_high / "saved_model.pb").touch()
    assert "serve one" not in refusal(too_high.parent)
