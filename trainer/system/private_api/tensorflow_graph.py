"""Freeze TensorFlow graphs, and read the files of a SavedModel."""

from tensorflow.core.protobuf.fingerprint_pb2 import FingerprintDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

__all__ = ["FingerprintDef", "SavedModel", "convert_variables_to_constants_v2"]
