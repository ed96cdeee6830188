"""`EXPORT/signature.json`: names, dtypes and shapes of inputs and outputs. Only this module knows them.

Every artifact of an export uses these names; clients, the server, the manifests and the parity gate read them here.
"""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Final, Literal

import pydantic

from export.files.read_file import StrictModel
from export.files.statuses import HOW_FILES_ARE_READ, STATUS_IN_WORDS, STATUS_TRANSPARENT, STATUSES
from export.files.statuses import STATUS_OK as STATUS_OK
from trainer.config.training import ModelTask
from trainer.data.decode.geometry import Geometry
from trainer.errors import ArtifactError, UsageError
from trainer.system import atomic
from trainer.system.names import ClassNames, ModelName

FILE_NAME = "signature.json"
# One class name per line, in the order of the probabilities, for tools that read no JSON.
LABELS_FILE = "labels.txt"
SCHEMA_VERSION: Final = 1
_HASH = "hash"

# Inputs. TensorFlow Serving treats a string tensor whose name ends in `_bytes` as base64 in JSON.
IMAGE_BYTES: Final = "image_bytes"
IMAGES: Final = "images"
# Outputs.
PROBABILITIES = "probabilities"
CLASS_ID = "class_id"
LABEL = "label"
PREDICTED = "predicted"
LOGITS = "logits"
FEATURES = "features"
STATUS = "status"
# Outputs on request.
OPTIONAL_OUTPUTS = (LOGITS, FEATURES)
# `class_id` of a refused image; its other outputs are 0, false or empty.
NO_CLASS: Final = -1
DEFAULT_THRESHOLD = 0.5
# Signatures of the SavedModel; `serving_default` is used by clients that name none.
SIGNATURE_IMAGE_BYTES = "serving_default"
SIGNATURE_IMAGES = "images"
# The signature of a TFLite file, from `images` to `probabilities`; ONNX has tensors of the same names.
TFLITE_SIGNATURE = "serving_default"


class TensorInfo(StrictModel):
    """One input or output.

    Attributes:
        shape: null is the batch dimension.
        range: smallest and largest value; null if unlimited.
        values: all values of a string, if there are few.
    """

    name: str
    dtype: Literal["string", "float32", "int64", "bool"]
    shape: list[int | None]
    range: tuple[float, float] | None = None
    values: list[str] | None = None
    description: str


class OutputInfo(TensorInfo):
    """An output; `signatures` are those of the SavedModel that have it."""

    signatures: list[str] = pydantic.Field([SIGNATURE_IMAGE_BYTES, SIGNATURE_IMAGES])
    saved_model_only: bool = True


class Signature(StrictModel):
    """The contract between an exported model and its callers.

    Attributes:
        temperature: the divisor of the logits; null if the probabilities are not calibrated.
        thresholds: for multi_label, the probability from which on each class is predicted; null for other tasks.
        sample_bits: bits in use in 16-bit image files that do not say it; null for all.
        resize: "crop" takes the largest centred square, "squash" the whole image, before the resize to image_size_px.
        channel_order, interpolation, antialias: of the pixels, and of that resize; constants.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model_name: ModelName
    task: ModelTask = "single_label"
    class_names: ClassNames
    temperature: float | None = pydantic.Field(None, gt=0)
    thresholds: list[float] | None = None
    sample_bits: int | None = pydantic.Field(None, ge=8, le=16)
    image_size_px: int
    resize: Literal["crop", "squash"]
    channel_order: Literal["RGB"] = "RGB"
    interpolation: Literal["bilinear"] = "bilinear"
    antialias: Literal[True] = True
    inputs: dict[str, TensorInfo]
    outputs: list[OutputInfo]

    @classmethod
    def of_classifier(
        cls,
        *,
        model_name: str,
        class_names: list[str],
        geometry: Geometry,
        task: ModelTask = "single_label",
        temperature: float | None = None,
        thresholds: Sequence[float] | None = None,
        with_logits: bool = False,
        num_features: int | None = None,
        sample_bits: int | None = None,
    ) -> "Signature":
        """Create the signature of a classifier.

        `thresholds` are for multi_label only, [classes]; None is 0.5 for each. With `num_features` None, there is no
        output `features`.
        """
        assert thresholds is None or (task == "multi_label" and len(thresholds) == len(class_names))
        if task == "multi_label" and thresholds is None:
            thresholds = [DEFAULT_THRESHOLD] * len(class_names)
        outputs = _classifier_outputs(task, len(class_names))
        if with_logits:
            outputs.append(_logits_info(len(class_names)))
        if num_features is not None:
            outputs.append(_features_info(num_features))
        return cls(
            model_name=model_name,
            task=task,
            class_names=class_names,
            temperature=temperature,
            thresholds=None if thresholds is None else list(thresholds),
            sample_bits=sample_bits,
            image_size_px=geometry.image_size_px,
            resize=geometry.resize,
            inputs=_inputs(geometry.image_size_px),
            outputs=[*outputs, _status_info()],
        )

    def describe_decisions(self) -> str:
        """Describe in words how logits become probabilities and labels."""
        calibrated = "not calibrated" if self.temperature is None else f"calibrated, temperature {self.temperature:.4g}"
        if self.thresholds is None:
            return f"probabilities are {calibrated}"
        is_tuned = any(threshold != DEFAULT_THRESHOLD for threshold in self.thresholds)
        thresholds = "as tuned on the validation split" if is_tuned else "one half"
        return f"probabilities are {calibrated}; thresholds are {thresholds}"

    def has_output(self, name: str) -> bool:
        return any(output.name == name for output in self.outputs)

    @property
    def reads_odd_files(self) -> bool:
        """True if the graph refuses files that it would decode differently from training; older exports do not."""
        return any(o.name == STATUS and STATUS_TRANSPARENT in (o.values or ()) for o in self.outputs)

    @property
    def geometry(self) -> Geometry:
        return Geometry(image_size_px=self.image_size_px, resize=self.resize)

    def content_hash(self) -> str:
        """Return the SHA-256 of the contract, the same for two exports of one run."""
        return _hash_of(self._content())

    def _content(self) -> dict[str, Any]:
        content = self.model_dump(mode="json")
        # Absent in the first exports, whose hash must not change.
        return content if self.sample_bits is not None else {k: v for k, v in content.items() if k != "sample_bits"}

    def labels_text(self) -> str:
        """Return the content of `labels.txt`."""
        return "".join(f"{name}\n" for name in self.class_names)

    def save(self, directory: pathlib.Path) -> None:
        """Write `signature.json`, with a hash of its content, and `labels.txt`."""
        content = {**self._content(), _HASH: self.content_hash()}
        atomic.write_text(directory / LABELS_FILE, self.labels_text())
        atomic.write_text(directory / FILE_NAME, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, directory: pathlib.Path) -> "Signature":
        """Load `signature.json`. Raises ArtifactError if `directory` is not an export or the file was edited."""
        path = directory / FILE_NAME
        try:
            content = json.loads(path.read_bytes())
            found = content.pop(_HASH, None) if isinstance(content, dict) else None
            signature = cls.model_validate(content)
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(
                f"{directory} is not an export (it holds no {FILE_NAME}); "
                "make one with: trainer export RUN --out EXPORT"
            ) from None
        except pydantic.ValidationError as e:
            raise ArtifactError(f"{path} is not of schema version {SCHEMA_VERSION}: {e.errors()[0]['msg']}") from None
        except ValueError as e:
            raise ArtifactError(f"{path} is not of schema version {SCHEMA_VERSION}: {e}") from None
        if found != signature.content_hash():
            raise ArtifactError(
                f"{path} was changed after it was written (its hash is not that of its content); copy the export again"
            )
        return signature


def parse_outputs(text: str, *, has_saved_model: bool) -> list[str]:
    """Parse a comma-separated list of OPTIONAL_OUTPUTS; it may be empty.

    Raises:
        UsageError: a name is unknown, or no format has these outputs.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in OPTIONAL_OUTPUTS:
            raise UsageError(f"there is no output {name!r} to choose; expected some of {', '.join(OPTIONAL_OUTPUTS)}")
    if names and not has_saved_model:
        raise UsageError(
            f"--outputs {','.join(names)} are outputs of the SavedModel, which is not among the --formats; add "
            "saved_model to them, or leave --outputs out"
        )
    return names


def _hash_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _inputs(size: int) -> dict[str, TensorInfo]:
    return {
        SIGNATURE_IMAGE_BYTES: TensorInfo(
            name=IMAGE_BYTES,
            dtype="string",
            shape=[None],
            description=HOW_FILES_ARE_READ,
        ),
        SIGNATURE_IMAGES: TensorInfo(
            name=IMAGES,
            dtype="float32",
            shape=[None, size, size, 3],
            range=(0, 255),
            description="RGB pixels, 0 to 255, already at the model's size; the only input of TFLite and ONNX "
            "(the int8 file takes them as uint8)",
        ),
    }


def _classifier_outputs(task: ModelTask, num_classes: int) -> list[OutputInfo]:
    adds_up = "each by itself" if task == "multi_label" else "they add up to 1"
    outputs = [
        OutputInfo(
            name=PROBABILITIES,
            dtype="float32",
            shape=[None, num_classes],
            range=(0, 1),
            description=f"one probability a class, in the order of class_names; {adds_up}",
            saved_model_only=False,
        ),
        OutputInfo(
            name=CLASS_ID,
            dtype="int64",
            shape=[None],
            range=(NO_CLASS, num_classes - 1),
            description=f"index of the most probable class; {NO_CLASS} where status is not {STATUS_OK}",
        ),
        OutputInfo(
            name=LABEL,
            dtype="string",
            shape=[None],
            description=f"its name; empty where status is not {STATUS_OK}",
        ),
    ]
    if task == "multi_label":
        predicted = OutputInfo(
            name=PREDICTED,
            dtype="bool",
            shape=[None, num_classes],
            description="whether the probability of each class is at or above its threshold",
        )
        outputs.append(predicted)
    return outputs


def _logits_info(num_classes: int) -> OutputInfo:
    return OutputInfo(
        name=LOGITS,
        dtype="float32",
        shape=[None, num_classes],
        description="what the network answers, before the temperature, softmax or sigmoid",
    )


def _features_info(num_features: int) -> OutputInfo:
    return OutputInfo(
        name=FEATURES,
        dtype="float32",
        shape=[None, num_features],
        description="what the last layer of the head gets: the pooled features, or what hidden layers make of them",
    )


def _status_info() -> OutputInfo:
    return OutputInfo(
        name=STATUS,
        dtype="string",
        shape=[None],
        values=list(STATUSES),
        description="; ".join(f"{status}: {words}" for status, words in STATUS_IN_WORDS.items())
        + f"; the numbers of such an image are 0, its {CLASS_ID} {NO_CLASS}",
    )
