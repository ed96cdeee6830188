"""The data types of the protocol: their names, what TensorFlow calls them, and their elements in memory.

BF16, which Triton and the gRPC description add to the table of the specification, is one of them.
"""

from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np

from serving.protocol.status import Code, RequestError, invalid


class Datatype(NamedTuple):
    """One data type.

    Attributes:
        name: in the protocol, such as "FP32".
        tensorflow: TensorFlow's name, such as "DT_FLOAT".
        numpy: the elements of arrays; `bytes` objects for BYTES.
    """

    name: str
    tensorflow: str
    numpy: np.dtype[Any]

    @property
    def wire(self) -> np.dtype[Any]:
        """The elements in binary data, which is little-endian."""
        return self.numpy.newbyteorder("<")


_ALL: Final = tuple(
    Datatype(name, tensorflow, np.dtype(element))
    for name, tensorflow, element in (
        ("BOOL", "DT_BOOL", np.bool_),
        ("UINT8", "DT_UINT8", np.uint8),
        ("UINT16", "DT_UINT16", np.uint16),
        ("UINT32", "DT_UINT32", np.uint32),
        ("UINT64", "DT_UINT64", np.uint64),
        ("INT8", "DT_INT8", np.int8),
        ("INT16", "DT_INT16", np.int16),
        ("INT32", "DT_INT32", np.int32),
        ("INT64", "DT_INT64", np.int64),
        ("FP16", "DT_HALF", np.float16),
        ("BF16", "DT_BFLOAT16", ml_dtypes.bfloat16),
        ("FP32", "DT_FLOAT", np.float32),
        ("FP64", "DT_DOUBLE", np.float64),
        ("BYTES", "DT_STRING", np.object_),
    )
)
DATATYPES: Final = {datatype.name: datatype for datatype in _ALL}
_OF_TENSORFLOW: Final = {datatype.tensorflow: datatype for datatype in _ALL}


def datatype_of(tensorflow: str) -> Datatype:
    """Return the data type that TensorFlow calls `tensorflow`. Raises RequestError (501) if the protocol has none."""
    try:
        return _OF_TENSORFLOW[tensorflow]
    except KeyError:
        raise RequestError(
            Code.UNIMPLEMENTED,
            f"the Open Inference Protocol has no data type for {tensorflow}; ask through TensorFlow Serving's gRPC API",
        ) from None


def find_datatype(name: str, input_name: str) -> Datatype:
    """Return the data type `name` of an input. Raises RequestError (400) for an unknown one."""
    try:
        return DATATYPES[name]
    except KeyError:
        raise invalid(
            f"input {input_name!r} has the unknown datatype {name[:80]!r}; expected one of {', '.join(DATATYPES)}"
        ) from None
