"""TensorProto to arrays and back: as TensorFlow reads it, and no more memory than was sent or allowed."""

import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow_serving.apis import predict_pb2

from serving.protocol.tensor_proto import RepeatBudget, decode_tensor, encode_tensor
from trainer.system import tf_runtime

DTYPES: list[Any] = [
    np.float32,
    np.float64,
    np.float16,
    ml_dtypes.bfloat16,
    np.int8,
    np.uint8,
    np.int16,
    np.uint16,
    np.int32,
    np.uint32,
    np.int64,
    np.uint64,
    np.bool_,
    np.complex64,
    np.complex128,
]


# Hypothesis has no values of bfloat16.
HYPOTHESIS_DTYPES = [dtype for dtype in DTYPES if dtype is not ml_dtypes.bfloat16]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)


@pytest.fixture(scope="module")
def tf() -> Any:
    tf_runtime.configure()
    import tensorflow

    return tensorflow


def decode(proto: Any, budget: int = 1000) -> np.ndarray[Any, Any]:
    return decode_tensor(proto, RepeatBudget(budget))


def proto_of(tf: Any, dtype: Any, shape: tuple[int, ...], **fields: Any) -> Any:
    return tf.make_tensor_proto(0, tf.int32).__class__(
        dtype=tf.as_dtype(dtype).as_datatype_enum, tensor_shape=tf.TensorShape(shape).as_proto(), **fields
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_is_what_tensorflow_reads(tf: Any, dtype: Any) -> None:
    values = np.array([[0, 1, 2], [3, 100, 1]]).astype(dtype)
    packed = proto_of(tf, dtype, (2, 3), tensor_content=values.tobytes())
    np.testing.assert_array_equal(decode(packed), values)
    fields = type(packed)()
    encode_tensor(values, fields)
    assert not fields.tensor_content
    np.testing.assert_array_equal(tf.make_ndarray(fields), values)
    decoded = decode(fields)
    assert (decoded.dtype, decoded.shape) == (values.dtype, values.shape)
    np.testing.assert_array_equal(decoded, values)


@settings(deadline=None)
@given(st.sampled_from(HYPOTHESIS_DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)))
def test_arrays_survive_the_way_out_and_back_in(array: np.ndarray[Any, Any]) -> None:
    proto = predict_pb2.PredictRequest().inputs["x"]
    encode_tensor(array, proto)
    decoded = decode(type(proto).FromString(proto.SerializeToString()), 0)
    assert (decoded.dtype, decoded.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(decoded, array)


def test_strings_in_their_field_and_packed(tf: Any) -> None:
    strings = np.array([[b"a", b""], [b"\xff" * 200, b"b"]], dtype=object)
    proto = tf.make_tensor_proto(strings)
    np.testing.assert_array_equal(decode(proto), strings)
    packed = proto_of(tf, tf.string, (2, 2), tensor_content=bytes([1, 0, 0xC8, 1, 1]) + b"a" + b"\xff" * 200 + b"b")
    np.testing.assert_array_equal(decode(packed), strings)
    assert tf.io.parse_tensor(packed.SerializeToString(), tf.string).numpy().tolist() == strings.tolist()
    encoded = type(proto)()
    encode_tensor(strings, encoded)
    assert encoded == proto


@pytest.mark.parametrize(
    ("dtype", "field", "values"),
    [
        (np.float32, "float_val", [1.5]),
        (np.float32, "float_val", [1.5, 2.5]),
        (np.float32, "float_val", []),
        (np.float32, "float_val", [1, 2, 3, 4, 5, 6, 7]),
        (np.float16, "half_val", [15360]),
        (np.int8, "int_val", [300, -1]),
        (np.complex64, "scomplex_val", [1, 2]),
        (np.bool_, "bool_val", [True]),
        (np.uint64, "uint64_val", [2**64 - 1]),
    ],
)
def test_missing_values_are_repeated_as_tensorflow_does(tf: Any, dtype: Any, field: str, values: list[Any]) -> None:
    proto = proto_of(tf, dtype, (2, 3), **{field: values})
    by_tensorflow = tf.io.parse_tensor(proto.SerializeToString(), tf.as_dtype(dtype)).numpy()
    np.testing.assert_array_equal(decode(proto), by_tensorflow)


def test_a_missing_string_repeats_the_last(tf: Any) -> None:
    proto = proto_of(tf, tf.string, (3,), string_val=[b"a", b"bc"])
    by_tensorflow = tf.io.parse_tensor(proto.SerializeToString(), tf.string).numpy()
    assert decode(proto).tolist() == by_tensorflow.tolist() == [b"a", b"bc", b"bc"]
    assert decode(proto_of(tf, tf.string, (2,))).tolist() == [b"", b""]


@pytest.mark.parametrize(
    ("dtype", "shape", "fields", "told"),
    [
        (np.float32, (10**12,), {"float_val": [1.0]}, "claims 3999999999996 bytes more than it holds"),
        (np.float32, (10**12,), {}, "claims 4000000000000 bytes more than it holds"),
        (np.float32, (2**31, 2**31, 2**31), {"float_val": [1.0]}, "more elements than can be counted"),
        (np.float32, (0, 2**62, 2**62), {}, "more elements than can be counted"),
        (
            np.float32,
            (10**9,),
            {"tensor_content": b"1234"},
            "tensor_content has 4 bytes, its shape and dtype 4000000000",
        ),
        (np.float32, (1,), {"tensor_content": b"12345"}, "tensor_content has 5 bytes, its shape and dtype 4"),
        (np.bytes_, (10**9,), {"string_val": [b"x" * 1000]}, "claims 1023999998976 bytes more than it holds"),
        (np.bytes_, (10**9,), {"tensor_content": b"\x00"}, "too few for 1000000000 strings"),
        (np.bytes_, (2,), {"tensor_content": b"\x00\x05a"}, "tensor_content has 3 bytes, its lengths 7"),
        (np.bytes_, (1,), {"tensor_content": b"\xff"}, "an invalid length of a string"),
        (np.bytes_, (1,), {"tensor_content": b"\xff" * 9}, "an invalid length of a string"),
        (np.float32, (1,) * 65, {"float_val": [1.0]}, "it has 65 dimensions, at most 64"),
    ],
)
def test_what_is_no_tensor_is_refused_before_memory_is_taken(
    tf: Any, dtype: Any, shape: tuple[int, ...], fields: Any, told: str
) -> None:
    proto = proto_of(tf, tf.string if dtype is np.bytes_ else dtype, shape, **fields)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=told):
            decode(proto)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_shapes_that_are_none_are_refused(tf: Any) -> None:
    unknown = proto_of(tf, np.float32, (1,))
    unknown.tensor_shape.unknown_rank = True
    negative = proto_of(tf, np.float32, (1,))
    negative.tensor_shape.dim[0].size = -1
    other = proto_of(tf, tf.qint8, (1,))
    odd = proto_of(tf, np.float32, (1,))
    odd.dtype = 77
    for proto, told in (
        (unknown, "its shape has an unknown rank"),
        (negative, r"its shape \[-1\] has a negative dimension"),
        (other, "its dtype DT_QINT8 is none of DT_STRING, DT_FLOAT"),
        (odd, "its dtype 77 is none of"),
    ):
        with pytest.raises(ValueError, match=told):
            decode(proto)


def test_the_inputs_of_a_request_share_what_may_be_repeated(tf: Any) -> None:
    budget = RepeatBudget(30)
    decode_tensor(proto_of(tf, np.float32, (5,), float_val=[1.0]), budget)
    with pytest.raises(ValueError, match="repeating the last value fills at most 14"):
        decode_tensor(proto_of(tf, np.float32, (5,), float_val=[1.0]), budget)
    with pytest.raises(ValueError, match="no field of a TensorProto holds float128"):
        encode_tensor(np.zeros(1, np.longdouble), proto_of(tf, np.float32, ()))
