"""Metadata of a TFLite file for MediaPipe and Android Studio: labels, normalisation, version.

The metadata is a flatbuffer in a buffer of the model; the labels are a text file in a zip archive appended to the
model. Format: "Adding metadata to TensorFlow Lite models", file identifier M001,
https://github.com/google-ai-edge/mediapipe/blob/master/mediapipe/tasks/metadata/metadata_schema.fbs
"""

import io
import zipfile
from typing import Any, TypeAlias

import flatbuffers

from export.files.signature import IMAGES, LABELS_FILE, PROBABILITIES, Signature
from trainer.system.private_api.tensorflow_lite import (
    BufferT,
    MetadataT,
    convert_bytearray_to_object,
    convert_object_to_bytearray,
)

# A flatbuffer table: field values by field number. An int is a byte; a list holds floats or tables.
_Value: TypeAlias = "str | int | list[Any] | _Table"
_Table: TypeAlias = dict[int, _Value]

_BUFFER_NAME = "TFLITE_METADATA"
_FILE_IDENTIFIER = b"M001"
_MIN_PARSER_VERSION = "1.0.0"


def with_metadata(content: bytes, signature: Signature, version: int) -> bytes:
    """Return the TFLite file with metadata, replacing any that it had; deterministic."""
    model = convert_bytearray_to_object(bytearray(content))
    known = [entry for entry in model.metadata or [] if _text_of(entry.name) == _BUFFER_NAME]
    if known:
        buffer = model.buffers[known[0].buffer]
    else:
        buffer, entry = BufferT(), MetadataT()
        entry.name, entry.buffer = _BUFFER_NAME, len(model.buffers)
        model.buffers.append(buffer)
        model.metadata = [*(model.metadata or []), entry]
    buffer.data = list(_describe(signature, version))
    packed = io.BytesIO(bytes(convert_object_to_bytearray(model)))
    with zipfile.ZipFile(packed, "a") as archive:
        # ZipInfo has a constant time, which keeps the file reproducible.
        archive.writestr(zipfile.ZipInfo(LABELS_FILE), signature.labels_text(), zipfile.ZIP_STORED)
    return packed.getvalue()


def _text_of(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _describe(signature: Signature, version: int) -> bytes:
    labels: _Table = {0: LABELS_FILE, 1: "one class a line, in the order of the probabilities", 2: 2}  # of an axis
    # The network scales pixels itself, so this is the identity: (pixel - 0) / 1.
    normalization: _Table = {0: 1, 1: {0: [0.0], 1: [1.0]}}
    image: _Table = {0: 2, 1: {0: 1}}  # image properties, RGB
    images: _Table = {
        0: IMAGES,
        1: "RGB pixels, 0 to 255",
        3: image,
        4: [normalization],
        5: {0: [255.0], 1: [0.0]},
    }
    probabilities: _Table = {
        0: PROBABILITIES,
        1: "one probability a class",
        5: {0: [1.0], 1: [0.0]},
        6: [labels],
    }
    model: _Table = {
        0: signature.model_name,
        1: f"image classifier, signature {signature.content_hash()}",
        2: str(version),
        3: [{2: [images], 3: [probabilities]}],
        7: _MIN_PARSER_VERSION,
    }
    builder = flatbuffers.Builder(1024)
    builder.Finish(_write(builder, model), _FILE_IDENTIFIER)
    return bytes(builder.Output())


def _write(builder: flatbuffers.Builder, value: _Value) -> int:
    """Write a string, list or table (not an int, which its table holds) and return its offset."""
    if isinstance(value, str):
        return int(builder.CreateString(value))
    if isinstance(value, dict):
        places = {slot: _write(builder, v) for slot, v in value.items() if not isinstance(v, int)}
        builder.StartObject(max(value) + 1)
        for slot, field in value.items():
            if isinstance(field, int):
                builder.PrependUint8Slot(slot, field, 0)
            else:
                builder.PrependUOffsetTRelativeSlot(slot, places[slot], 0)
        return int(builder.EndObject())
    assert isinstance(value, list)
    elements = [v if isinstance(v, float) else _write(builder, v) for v in value]
    builder.StartVector(4, len(value), 4)
    for element in reversed(elements):
        builder.PrependFloat32(element) if isinstance(element, float) else builder.PrependUOffsetTRelative(element)
    return int(builder.EndVector())
