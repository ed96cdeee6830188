"""Tensors of the Open Inference Protocol: what goes in comes out, for every data type, and no length is believed."""

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.open_inference.binary_tensors import decode_binary, encode_binary
from serving.open_inference.datatypes import DATATYPES, Datatype, datatype_of
from serving.open_inference.infer import InferRequest, RequestedOutput, choose_outputs, decode_inputs
from serving.open_inference.rest_documents import decode_request, encode_answer
from serving.protocol.status import Code, RequestError
from serving.protocol.tensors import Array, SignatureSpec, TensorSpec

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw: st.DrawFn, *, in_json: bool = False) -> tuple[Datatype, Array]:
    """A tensor of any data type; with `in_json`, one that JSON can represent."""
    datatype = DATATYPES[draw(st.sampled_from([name for name in DATATYPES if not (in_json and name == "BF16")]))]
    shape = draw(SHAPES)
    if datatype.name == "BYTES":
        text = st.text(max_size=9).map(lambda s: s.encode("utf-8", "ignore"))
        items = draw(hnp.arrays(object, shape, elements=text if in_json else st.binary(max_size=9)))
        return datatype, items
    if datatype.name == "BF16":
        return datatype, draw(hnp.arrays(np.uint16, shape)).view(datatype.numpy)
    finite = {"allow_nan": False, "allow_infinity": False} if in_json and datatype.numpy.kind == "f" else None
    return datatype, draw(hnp.arrays(datatype.numpy, shape, elements=finite))


def same(array: Array, expected: Array) -> bool:
    """Whether both have the same type, shape and elements, bit for bit."""
    if (array.dtype, array.shape) != (expected.dtype, expected.shape):
        return False
    return array.tolist() == expected.tolist() if array.dtype == object else array.tobytes() == expected.tobytes()


@settings(deadline=None, max_examples=300)
@given(tensors())
def test_binary_data_survives_the_way_out_and_back_in(tensor: tuple[Datatype, Array]) -> None:
    datatype, array = tensor
    content = encode_binary("x", datatype, array)
    if datatype.name != "BYTES":
        assert len(content) == array.size * datatype.numpy.itemsize
    # At an odd address, as after JSON of any length.
    assert same(decode_binary("x", datatype, array.shape, memoryview(b"{" + content)[1:]), array)


@settings(deadline=None, max_examples=200)
@given(st.lists(tensors(), max_size=3), st.lists(st.booleans(), min_size=3, max_size=3), st.booleans())
def test_an_answer_read_as_a_request_is_the_same_again(
    outputs: list[tuple[Datatype, Array]], are_binary: list[bool], is_flat: bool
) -> None:
    def chosen_binary(index: int) -> bool:
        # What JSON cannot represent goes as binary data.
        datatype, array = outputs[index]
        is_text = datatype.name == "BYTES" and all(is_utf8(item) for item in array.ravel())
        is_finite = datatype.numpy.kind == "f" and np.isfinite(array).all()
        return are_binary[index] or not (is_text or is_finite or datatype.numpy.kind in "biu")

    chosen = [
        (RequestedOutput(name=f"x{i}", is_binary=chosen_binary(i)), datatype) for i, (datatype, _) in enumerate(outputs)
    ]
    arrays = {f"x{i}": array for i, (_, array) in enumerate(outputs)}
    request = InferRequest(id="7", signature_name=None, inputs=[], outputs=[], is_binary=False)
    answer = encode_answer(model_name="m", model_version=3, request=request, chosen=chosen, outputs=arrays)
    length = len(answer.body) if answer.json_length is None else answer.json_length
    document = json.loads(answer.body[:length])
    document["inputs"] = document.pop("outputs")
    for tensor in [] if is_flat else document["inputs"]:
        if "data" in tensor and 0 not in tensor["shape"]:
            tensor["data"] = np.array(tensor["data"], object).reshape(tensor["shape"] or [1]).tolist()
    head = json.dumps(document).encode()
    again = decode_request(head + answer.body[length:], str(len(head)))
    specs = {f"x{i}": spec_of(*output) for i, output in enumerate(outputs)}
    decoded = decode_inputs(again, SignatureSpec(name="s", method_name="", inputs=specs, outputs={}))
    assert again.id == "7"
    assert list(decoded) == list(arrays)
    assert all(same(decoded[name], arrays[name]) for name in arrays)


def is_utf8(item: bytes) -> bool:
    try:
        item.decode()
    except UnicodeDecodeError:
        return False
    return True


def spec_of(datatype: Datatype, array: Array) -> TensorSpec:
    return TensorSpec(dtype=datatype.tensorflow, shape=array.shape)


@pytest.mark.parametrize(
    ("datatype", "shape", "content", "told"),
    [
        ("FP32", (2, 2), bytes(15), "has 15 bytes of data, expected 16 for shape [2, 2] of FP32"),
        ("FP32", (2, 2), bytes(20), "has 20 bytes of data, expected 16 for shape [2, 2] of FP32"),
        ("FP32", (2**62, 2**62), bytes(16), "has 16 bytes of data, expected"),
        ("BOOL", (2,), b"\1\2", "the byte 2 is no BOOL; expected 0 or 1"),
        ("BYTES", (2**62,), bytes(16), "too few for 4611686018427387904 elements of BYTES"),
        ("BYTES", (1,), b"\5\0\0\0abcd", "element 0 claims 5 bytes, but 4 are left"),
        ("BYTES", (1,), b"\xff\xff\xff\xffabcd", "element 0 claims 4294967295 bytes, but 4 are left"),
        ("BYTES", (2,), b"\3\0\0\0abc\0", "the data ends before element 1 of 2"),
        ("BYTES", (1,), b"\1\0\0\0ab", "has 1 bytes of data after its 1 elements"),
        ("BYTES", (0,), b"\0", "has 1 bytes of data after its 0 elements"),
    ],
)
def test_binary_data_that_does_not_fit_is_refused_before_anything_is_allocated(
    datatype: str, shape: tuple[int, ...], content: bytes, told: str
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RequestError) as caught:
            decode_binary("x", DATATYPES[datatype], shape, memoryview(content))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert told in caught.value.message
    assert caught.value.http_status == 400
    assert peak_bytes < 100_000


def test_a_type_without_a_name_in_the_protocol_is_unimplemented() -> None:
    with pytest.raises(RequestError) as caught:
        datatype_of("DT_COMPLEX64")
    assert caught.value.code is Code.UNIMPLEMENTED


def test_bf16_has_no_form_in_json() -> None:
    spec = TensorSpec(dtype="DT_BFLOAT16", shape=(1,))
    signature = SignatureSpec(name="s", method_name="", inputs={"x": spec}, outputs={"x": spec})
    body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "BF16", "data": [1.0]}]}'
    request = decode_request(body, None)
    with pytest.raises(RequestError, match="BF16 has no form in JSON; send it as binary data"):
        decode_inputs(request, signature)
    with pytest.raises(RequestError, match="ask for it with the parameter 'binary_data'"):
        encode_answer(
            model_name="m",
            model_version=1,
            request=request,
            chosen=choose_outputs(request, signature),
            outputs={"x": np.zeros(1, DATATYPES["BF16"].numpy)},
        )


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9), lambda v: st.lists(v, max_size=4)
)
INPUTS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y"]) | JSON_VALUES,
        "shape": st.lists(st.integers(-1, 4) | st.just(2**62), max_size=4) | JSON_VALUES,
        "datatype": st.sampled_from(sorted(DATATYPES)) | JSON_VALUES,
        "data": JSON_VALUES,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 40) | JSON_VALUES}),
    },
)


@settings(deadline=None, max_examples=500)
@given(st.lists(INPUTS, max_size=3), st.binary(max_size=40), st.integers(-3, 3), st.sampled_from(sorted(DATATYPES)))
def test_random_documents_are_decoded_or_refused(
    inputs: list[dict[str, Any]], data: bytes, shift: int, datatype: str
) -> None:
    head = json.dumps({"inputs": inputs}).encode()
    spec = TensorSpec(dtype=DATATYPES[datatype].tensorflow, shape=None)
    signature = SignatureSpec(name="s", method_name="", inputs={"x": spec}, outputs={})
    try:
        decoded = decode_inputs(decode_request(head + data, str(len(head) + shift)), signature)
    except RequestError as e:
        assert e.http_status == 400
        assert len(e.message) < 1000
        return
    assert decoded["x"].dtype == DATATYPES[datatype].numpy


VALID = json.dumps(
    {
        "id": "1",
        "parameters": {"signature_name": "s", "binary_data_output": True},
        "inputs": [
            {"name": "x", "shape": [2, 2], "datatype": "FP16", "parameters": {"binary_data_size": 8}},
            {"name": "y", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 11}},
            {"name": "z", "shape": [1, 2], "datatype": "INT8", "data": [[1, -2]]},
        ],
        "outputs": [{"name": "x", "parameters": {"binary_data": False}}],
    }
).encode()
DATA = bytes(8) + b"\2\0\0\0ab\1\0\0\0c"


@settings(deadline=None, max_examples=500)
@given(st.lists(st.tuples(st.integers(0, len(VALID + DATA) - 1), st.integers(0, 255)), max_size=4))
def test_a_changed_request_is_decoded_or_refused(changes: list[tuple[int, int]]) -> None:
    body = bytearray(VALID + DATA)
    for position, byte in changes:
        body[position] = byte
    specs = {
        name: TensorSpec(dtype=dtype, shape=None)
        for name, dtype in (("x", "DT_HALF"), ("y", "DT_STRING"), ("z", "DT_INT8"))
    }
    signature = SignatureSpec(name="s", method_name="", inputs=specs, outputs=specs)
    try:
        request = decode_request(bytes(body), str(len(VALID)))
        choose_outputs(request, signature)
        decoded = decode_inputs(request, signature)
    except RequestError as e:
        assert e.http_status == 400
        assert len(e.message) < 1000
        return
    assert set(decoded) == {"x", "y", "z"}
