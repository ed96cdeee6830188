"""Read, change and write TFLite files, and tell the converter's refusals from other errors."""

from tensorflow.lite.python.convert_phase import ConverterError
from tensorflow.lite.python.schema_py_generated import (
    BufferT,
    BuiltinOperator,
    MetadataT,
    OperatorCodeT,
    OperatorT,
    TensorType,
)
from tensorflow.lite.python.util import modify_model_io_type
from tensorflow.lite.tools.flatbuffer_utils import convert_bytearray_to_object, convert_object_to_bytearray

__all__ = [
    "BufferT",
    "BuiltinOperator",
    "ConverterError",
    "MetadataT",
    "OperatorCodeT",
    "OperatorT",
    "TensorType",
    "convert_bytearray_to_object",
    "convert_object_to_bytearray",
    "modify_model_io_type",
]
