"""The REST JSON codec: what goes in comes out, and what does not fit is named."""

import base64
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.protocol.status import Code, RequestError
from serving.protocol.tensors import SignatureSpec, TensorSpec
from serving.rest import codec, encoding
from serving.rest.codec import Format

NUMBER_TYPES = {
    "DT_INT8": np.int8,
    "DT_UINT8": np.uint8,
    "DT_INT16": np.int16,
    "DT_INT32": np.int32,
    "DT_UINT32": np.uint32,
    "DT_INT64": np.int64,
    "DT_UINT64": np.uint64,
    "DT_FLOAT": np.float32,
    "DT_DOUBLE": np.float64,
    "DT_BOOL": np.bool_,
}


def signature(**inputs: tuple[str, tuple[int, ...] | None]) -> SignatureSpec:
    specs = {name: TensorSpec(dtype=dtype, shape=shape) for name, (dtype, shape) in inputs.items()}
    return SignatureSpec(name="serving_default", method_name="tensorflow/serving/predict", inputs=specs, outputs={})


def decode(document: Any, spec: SignatureSpec) -> dict[str, Any]:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return codec.decode_inputs(codec.parse_predict_request(body), spec)


def refusal(document: Any, spec: SignatureSpec) -> str:
    with pytest.raises(RequestError) as caught:
        decode(document, spec)
    assert caught.value.http_status == 400
    return caught.value.message


@st.composite
def number_tensors(draw: st.DrawFn) -> tuple[str, np.ndarray[Any, Any]]:
    name = draw(st.sampled_from(sorted(NUMBER_TYPES)))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
    finite = {"allow_nan": False, "allow_infinity": False} if name in ("DT_FLOAT", "DT_DOUBLE") else None
    return name, draw(hnp.arrays(NUMBER_TYPES[name], shape, elements=finite))


@settings(deadline=None)
@given(number_tensors(), st.sampled_from(Format))
def test_numbers_survive_the_way_out_and_back_in(tensor: tuple[str, np.ndarray[Any, Any]], layout: Format) -> None:
    dtype, array = tensor
    answer = json.loads(encoding.encode_outputs({"x": array}, layout))
    values = answer["predictions" if layout is Format.ROW else "outputs"]

    back = decode({layout.value: values}, signature(x=(dtype, (-1,) * array.ndim)))["x"]

    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@settings(deadline=None)
@given(st.lists(st.binary(), min_size=1), st.sampled_from(Format))
def test_bytes_survive_as_base64(items: list[bytes], layout: Format) -> None:
    array = np.empty(len(items), object)
    array[:] = items
    answer = json.loads(encoding.encode_outputs({"x_bytes": array}, layout))
    values = answer["predictions" if layout is Format.ROW else "outputs"]
    assert all(set(value) == {"b64"} for value in values)
    assert decode({layout.value: values}, signature(x=("DT_STRING", (-1,))))["x"].tolist() == items


@settings(deadline=None)
@given(st.lists(st.text(), min_size=1))
def test_text_survives_as_text(items: list[str]) -> None:
    array = np.empty(len(items), object)
    array[:] = [item.encode() for item in items]
    answer = json.loads(encoding.encode_outputs({"x": array}, Format.ROW))
    assert answer["predictions"] == items
    assert decode({"instances": items}, signature(x=("DT_STRING", (-1,))))["x"].tolist() == array.tolist()


@settings(deadline=None)
@given(number_tensors(), st.integers(1, 3))
def test_rows_and_columns_say_the_same(tensor: tuple[str, np.ndarray[Any, Any]], num_inputs: int) -> None:
    dtype, array = tensor
    names = [f"input_{i}" for i in range(num_inputs)]
    spec = signature(**dict.fromkeys(names, (dtype, (-1,) * array.ndim)))
    rows = [dict.fromkeys(names, row) for row in array.tolist()]
    by_row = decode({"instances": rows}, spec)
    by_column = decode({"inputs": dict.fromkeys(names, array.tolist())}, spec)
    for name in names:
        np.testing.assert_array_equal(by_row[name], by_column[name])


def test_a_float32_is_written_with_its_own_digits() -> None:
    array = np.array([0.2, 1.0, 1e-8], np.float32)
    assert encoding.encode_outputs({"x": array}, Format.COLUMNAR) == b'{"outputs": [0.2, 1.0, 1e-08]}'


def test_non_finite_numbers_are_read() -> None:
    x = decode(b'{"instances": [NaN, Infinity, -Infinity]}', signature(x=("DT_FLOAT", (-1,))))["x"]
    assert math.isnan(x[0])
    assert x[1:].tolist() == [math.inf, -math.inf]


def test_several_outputs_keep_their_names_and_one_loses_it() -> None:
    outputs = {"a": np.array([1, 2]), "b": np.array([[0.5], [1.5]])}
    assert json.loads(encoding.encode_outputs(outputs, Format.ROW)) == {
        "predictions": [{"a": 1, "b": [0.5]}, {"a": 2, "b": [1.5]}]
    }
    assert json.loads(encoding.encode_outputs(outputs, Format.COLUMNAR)) == {
        "outputs": {"a": [1, 2], "b": [[0.5], [1.5]]}
    }
    assert json.loads(encoding.encode_outputs({"a": outputs["a"]}, Format.ROW)) == {"predictions": [1, 2]}


def test_tensors_with_an_empty_dimension_keep_their_shape() -> None:
    answer = encoding.encode_outputs({"x": np.zeros((2, 0, 3), np.float32)}, Format.COLUMNAR)
    assert json.loads(answer) == {"outputs": [[], []]}
    assert decode({"inputs": [[], []]}, signature(x=("DT_FLOAT", (-1, -1))))["x"].shape == (2, 0)


def test_base64_may_be_wrapped_and_unpadded() -> None:
    spec = signature(x=("DT_STRING", (-1,)))
    encoded = base64.b64encode(bytes(range(100))).decode()
    wrapped = encoded[:60] + "\n" + encoded[60:].rstrip("=")
    assert decode({"instances": [{"b64": wrapped}]}, spec)["x"].tolist() == [bytes(range(100))]


@pytest.mark.parametrize("shape", [None, (), (1,), (-1, 1), (-1, 2, 2)])
def test_the_shape_is_that_of_the_request_whatever_the_signature_says(shape: tuple[int, ...] | None) -> None:
    spec = signature(x=("DT_INT32", shape))
    assert decode({"inputs": [[[1]]]}, spec)["x"].shape == (1, 1, 1)
    assert decode({"inputs": 1}, spec)["x"].shape == ()
    assert decode({"instances": [1, 2, 5]}, spec)["x"].shape == (3,)


FLOATS = signature(x=("DT_FLOAT", (-1, 2)))
TEXTS = signature(x=("DT_STRING", (-1,)))
TWO = signature(a=("DT_FLOAT", (-1,)), b=("DT_INT64", (-1,)))


@pytest.mark.parametrize(
    ("document", "spec", "told"),
    [
        (b"", FLOATS, "The document is empty"),
        (b"{", FLOATS, "JSON Parse error"),
        (b"[1]", FLOATS, "Is not object"),
        (b"\xff\xfe{", FLOATS, "JSON Parse error"),
        (b'{"instances": ' + b"[" * 100_000, FLOATS, "JSON Parse error"),
        (b'{"instances": [' + b"9" * 5000 + b"]}", FLOATS, "JSON Parse error"),
        ({}, FLOATS, "Missing 'inputs' or 'instances' key"),
        ({"instances": [[1, 2]], "inputs": [[1, 2]]}, FLOATS, "only one of 'inputs' or 'instances'"),
        ({"instances": [[1, 2]], "signature_name": 3}, FLOATS, "'signature_name' key must be a string value, not 3"),
        ({"instances": []}, FLOATS, "No values in 'instances' array"),
        ({"instances": {"x": 1}}, FLOATS, "Expecting 'instances' to be an list/array"),
        ({"instances": [[1, 2], [3]]}, FLOATS, "ragged: lists of sizes 1 and 2 at level 1"),
        ({"instances": [[1, 2], 3]}, FLOATS, "ragged: JSON Value: 3 found beside a list at level 1"),
        ({"instances": [[1, True]]}, FLOATS, "JSON Value: true is not of expected type: float"),
        ({"instances": [[1, None]]}, FLOATS, "JSON Value: null is not of expected type: float"),
        ({"instances": [[1, "2"]]}, FLOATS, 'JSON Value: "2" is not of expected type: float'),
        ({"instances": [[1, {"b64": "AA=="}]]}, FLOATS, 'JSON Value: {"b64": "AA=="} is not of expected type: float'),
        ({"instances": [[1, 1e39]]}, FLOATS, "1e+39 is outside the range of float"),
        ({"instances": [[1, 10**400]]}, FLOATS, "outside the range of float"),
        ({"instances": [1, 2.5]}, signature(x=("DT_INT32", (-1,))), "JSON Value: 2.5 is not of expected type: int32"),
        ({"instances": [2**31]}, signature(x=("DT_INT32", (-1,))), "2147483648 is outside the range of int32"),
        ({"instances": [-1]}, signature(x=("DT_UINT8", (-1,))), "-1 is outside the range of uint8"),
        ({"instances": [1]}, signature(x=("DT_BOOL", (-1,))), "JSON Value: 1 is not of expected type: bool"),
        ({"instances": [7]}, TEXTS, "JSON Value: 7 is not of expected type: string"),
        ({"instances": [{"b64": "AA==", "c": 1}]}, TEXTS, "keys must be equal to: x"),
        ({"instances": [{"b64": "?"}]}, TEXTS, "unable to base64 decode"),
        (b'{"instances": ["\\ud800"]}', TEXTS, "is not valid text"),
        ({"instances": [1]}, TWO, "expecting list of objects as multiple input tensors required: a,b"),
        ({"instances": [{"a": 1}]}, TWO, "keys must be equal to: a,b"),
        ({"instances": [{"a": 1, "b": 2}, 3]}, TWO, "Expecting object but got 3 at item 1 of input list"),
        ({"inputs": [1]}, TWO, "expecting an object as multiple input tensors required: a,b"),
        ({"inputs": {"a": [1]}}, TWO, "Missing named input: b in 'inputs' object."),
    ],
)
def test_what_does_not_fit_is_refused_by_name(document: Any, spec: SignatureSpec, told: str) -> None:
    assert told in refusal(document, spec)


def test_an_error_about_a_large_value_is_short() -> None:
    assert len(refusal({"instances": [[1] * 100_000, {"x": [0] * 100_000}]}, FLOATS)) < 400


def test_a_dtype_that_json_cannot_carry_is_unimplemented() -> None:
    with pytest.raises(RequestError) as caught:
        decode({"instances": [1]}, signature(x=("DT_COMPLEX64", (-1,))))
    assert caught.value.code is Code.UNIMPLEMENTED
    with pytest.raises(RequestError) as caught:
        encoding.encode_outputs({"x": np.zeros(1, np.complex64)}, Format.ROW)
    assert caught.value.http_status == 501


@pytest.mark.parametrize(
    ("outputs", "status", "told"),
    [
        ({"x": np.float32(1.0)}, 400, "x has no shape information"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, 400, "the outputs differ in batch size ({'x': 2, 'y': 3})"),
        ({"x": np.array([b"\xff"], object)}, 500, "output 'x' is not UTF-8"),
        ({"x": np.array([1, np.nan], np.float32)}, 500, "output 'x' holds 1 of 2 numbers that are not finite (nan)"),
        ({"x": np.zeros(2), "y": np.array([[1, -np.inf], [np.inf, 0]])}, 500, "'y' holds 2 of 4 numbers that"),
    ],
)
def test_outputs_that_have_no_json_are_told(outputs: dict[str, Any], status: int, told: str) -> None:
    with pytest.raises(RequestError) as caught:
        encoding.encode_outputs({name: np.asarray(value) for name, value in outputs.items()}, Format.ROW)
    assert caught.value.http_status == status
    assert told in caught.value.message
