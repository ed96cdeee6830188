"""`EXPORT/signature.json`: names, dtypes and shapes of what goes in and comes out. This module alone knows them.

Every artifact of an export answers to these names; clients, the server, the manifests and the parity gate
read them here.
"""

import hashlib
import json
import pathlib
from typing import Final, Literal

import pydantic

from trainer import atomic
from trainer.data.geometry import Geometry
from trainer.errors import ArtifactError

FILE_NAME = "signature.json"
# One class name a line, in the order of the probabilities, for tools that read no JSON.
LABELS_FILE = "labels.txt"
SCHEMA_VERSION: Final = 1

# Inputs. TensorFlow Serving treats a string tensor whose name ends in `_bytes` as base64 in JSON.
IMAGE_BYTES: Final = "image_bytes"
IMAGES: Final = "images"
# Outputs.
PROBABILITIES = "probabilities"
CLASS_ID = "class_id"
LABEL = "label"
# Signatures of the SavedModel. `serving_default` is what a client gets that names none.
SIGNATURE_IMAGE_BYTES = "serving_default"
SIGNATURE_IMAGES = "images"
# A TFLite file has this one, from `images` to `probabilities`; ONNX names its tensors the same and has none.
TFLITE_SIGNATURE = "serving_default"
# A path component, a URL component and a TensorFlow Serving model name in one.
MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


class TensorInfo(pydantic.BaseModel):
    """One input or output; null in `shape` is the free batch dimension."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: Literal["string", "float32", "int64"]
    shape: list[int | None]
    description: str


class Signature(pydantic.BaseModel):
    """The contract between an exported model and everyone who calls it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    model_name: str = pydantic.Field(pattern=MODEL_NAME_PATTERN)
    class_names: list[str]
    image_size_px: int
    resize: Literal["crop", "squash"]
    inputs: dict[str, TensorInfo]
    outputs: list[TensorInfo]

    @classmethod
    def of_classifier(cls, *, model_name: str, class_names: list[str], geometry: Geometry) -> "Signature":
        """The signature of a single-label classifier over `class_names`."""
        size = geometry.image_size_px
        return cls(
            model_name=model_name,
            class_names=class_names,
            image_size_px=size,
            resize=geometry.resize,
            inputs={
                SIGNATURE_IMAGE_BYTES: TensorInfo(
                    name=IMAGE_BYTES,
                    dtype="string",
                    shape=[None],
                    description="a JPEG, PNG, GIF, BMP or WebP (still, opaque) of any size, upright: EXIF is not read",
                ),
                SIGNATURE_IMAGES: TensorInfo(
                    name=IMAGES,
                    dtype="float32",
                    shape=[None, size, size, 3],
                    description="RGB pixels, 0 to 255, already at the model's size; the only input of TFLite and ONNX "
                    "(the int8 file takes them as uint8)",
                ),
            },
            outputs=[
                TensorInfo(
                    name=PROBABILITIES,
                    dtype="float32",
                    shape=[None, len(class_names)],
                    description="one probability a class, in the order of class_names; they add up to 1",
                ),
                TensorInfo(
                    name=CLASS_ID,
                    dtype="int64",
                    shape=[None],
                    description="index of the most probable class; SavedModel only",
                ),
                TensorInfo(name=LABEL, dtype="string", shape=[None], description="its name; SavedModel only"),
            ],
        )

    @property
    def geometry(self) -> Geometry:
        return Geometry(image_size_px=self.image_size_px, resize=self.resize)

    def content_hash(self) -> str:
        """SHA-256 of the contract itself, the same for two exports of one run."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def labels_text(self) -> str:
        """The content of `labels.txt`."""
        return "".join(f"{name}\n" for name in self.class_names)

    def save(self, directory: pathlib.Path) -> None:
        """Writes `signature.json` and `labels.txt`."""
        atomic.write_text(directory / LABELS_FILE, self.labels_text())
        atomic.write_text(directory / FILE_NAME, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, directory: pathlib.Path) -> "Signature":
        """Raises ArtifactError where `directory` is no export."""
        path = directory / FILE_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(
                f"{directory} is not an export (it holds no {FILE_NAME}); "
                f"make one with: trainer export RUN --out {directory}"
            ) from None
        except pydantic.ValidationError as e:
            raise ArtifactError(f"{path} is not of schema version {SCHEMA_VERSION}: {e.errors()[0]['msg']}") from None
