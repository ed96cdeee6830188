"""The formats of an export: names, paths of artifacts, and accuracy budgets.

This is the only table of budgets. A new format also needs a converter (`to_*`) and a runtime (`runtimes`).
"""

import dataclasses
import difflib
import pathlib
from typing import Literal

from export.files.read_file import StrictModel
from trainer.errors import UsageError

# The fewest images to judge an export on, if the split has them.
MIN_NUM_IMAGES = 500
# The fewest images of a class to judge that class by itself.
MIN_NUM_OF_CLASS = 10
# The operator sets that tf2onnx 1.17 writes and is tested with: https://github.com/onnx/tensorflow-onnx
ONNX_OPSETS = range(14, 19)
DEFAULT_ONNX_OPSET = ONNX_OPSETS[-1]

Kind = Literal["saved_model", "tflite", "onnx"]


class Budget(StrictModel):
    """The limits of the parity gate and of the replay of golden images; null: not judged.

    Attributes:
        max_difference: of any one probability from the model's. If the model's two highest probabilities differ by more
            than twice this, the best class must be the same.
        max_share_set_aside: fraction of the images that may get another class if those two differ by less; null: any.
        max_accuracy_drop: fraction of the images, such as 0.01 for one point.
        min_agreement: fraction of the images that must get the model's class; one other image is always allowed.
        min_class_agreement: the same for each class with at least `MIN_NUM_OF_CLASS` images: an average hides a lost
            rare class.
        max_share_uninformative: fraction of the images that may get an uninformative answer, see `information`.
        max_replay_difference: of any one probability from the same file's answer at publication; it leaves room for the
            arithmetic of another processor.
    """

    max_difference: float | None = None
    max_share_set_aside: float | None = None
    max_accuracy_drop: float | None = None
    min_agreement: float | None = None
    min_class_agreement: float | None = None
    max_share_uninformative: float | None = None
    max_replay_difference: float


_MAX_SHARE_UNINFORMATIVE = 0.01
_FLOAT32 = Budget(
    max_difference=1e-4,
    max_share_set_aside=1e-3,
    min_agreement=0.999,
    min_class_agreement=0.9,
    max_share_uninformative=_MAX_SHARE_UNINFORMATIVE,
    max_replay_difference=1e-4,
)
# With a thousand classes all probabilities may be below 1e-2, so the decision is judged as well.
_FLOAT16 = Budget(
    max_difference=1e-2,
    min_agreement=0.98,
    min_class_agreement=0.8,
    max_share_uninformative=_MAX_SHARE_UNINFORMATIVE,
    max_replay_difference=1e-2,
)
# Probabilities of a good integer model may move by tenths; its decisions count. A good one of 1,000 classes agrees on
# 88% of the images, of ten classes on 95% and more; noise from a model that knew little, on 22%.
_INTEGER = Budget(
    max_accuracy_drop=0.01,
    min_agreement=0.8,
    min_class_agreement=0.5,
    max_share_uninformative=_MAX_SHARE_UNINFORMATIVE,
    max_replay_difference=5e-2,
)
# About three significant digits, and processors with bfloat16 accumulate in their own order.
_BFLOAT16 = _INTEGER.model_copy(update={"min_agreement": 0.9, "min_class_agreement": 0.7})
# For pixels that a client decoded and resized without TensorFlow: they differ by rounding, to which some models are
# more sensitive than others.
CLIENT_BUDGET = _BFLOAT16
# For odd files: JPEG decoders round differently, which is far less than a rotated or black picture.
ODD_FILES_BUDGET = Budget(max_difference=0.2, max_replay_difference=5e-2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of artifact, by the name that `--formats` and every table use.

    Attributes:
        by_choice: made only if named, or as the fallback of an int8 file over budget; not part of `all`.
        calibrated: its tensor ranges come from training images.
    """

    name: str
    kind: Kind
    budget: Budget
    by_choice: bool = False
    calibrated: bool = False

    def path(self, *, model_name: str, version: int) -> pathlib.PurePosixPath:
        """Return the path of the artifact in an export; a directory for SavedModel, otherwise a file."""
        if self.kind == "saved_model":
            return pathlib.PurePosixPath(self.name, model_name, str(version))
        if self.kind == "tflite":
            return pathlib.PurePosixPath("tflite", f"{model_name}-{self.name.removeprefix('tflite-')}.tflite")
        return pathlib.PurePosixPath("onnx", f"{model_name}{self.name.removeprefix('onnx')}.onnx")


SAVED_MODEL = Format(name="saved_model", kind="saved_model", budget=_FLOAT32)
# Weights in half the bytes, arithmetic as in mixed_bfloat16 training.
SAVED_MODEL_BFLOAT16 = Format(name="saved_model-bfloat16", kind="saved_model", budget=_BFLOAT16, by_choice=True)
TFLITE_FLOAT32 = Format(name="tflite-float32", kind="tflite", budget=_FLOAT32)
TFLITE_FLOAT16 = Format(name="tflite-float16", kind="tflite", budget=_FLOAT16)
# 8-bit weights, float32 activations.
TFLITE_DYNAMIC = Format(name="tflite-dynamic", kind="tflite", budget=_INTEGER)
TFLITE_INT8 = Format(name="tflite-int8", kind="tflite", budget=_INTEGER, calibrated=True)
# 8-bit weights, 16-bit activations.
TFLITE_INT8X16 = Format(name="tflite-int8x16", kind="tflite", budget=_INTEGER, by_choice=True, calibrated=True)
ONNX = Format(name="onnx", kind="onnx", budget=_FLOAT32)
ONNX_FLOAT16 = Format(name="onnx-float16", kind="onnx", budget=_FLOAT16)
ONNX_DYNAMIC = Format(name="onnx-dynamic", kind="onnx", budget=_INTEGER, by_choice=True)
ONNX_INT8 = Format(name="onnx-int8", kind="onnx", budget=_INTEGER, calibrated=True)
ONNX_INT8X16 = Format(name="onnx-int8x16", kind="onnx", budget=_INTEGER, by_choice=True, calibrated=True)

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        SAVED_MODEL,
        SAVED_MODEL_BFLOAT16,
        TFLITE_FLOAT32,
        TFLITE_FLOAT16,
        TFLITE_DYNAMIC,
        TFLITE_INT8,
        TFLITE_INT8X16,
        ONNX,
        ONNX_FLOAT16,
        ONNX_DYNAMIC,
        ONNX_INT8,
        ONNX_INT8X16,
    )
}
SAVED_MODELS = tuple(f for f in FORMATS.values() if f.kind == "saved_model")
# Formats that can stand in for the model if the run is gone.
FLOAT32_FORMATS = tuple(f.name for f in FORMATS.values() if f.budget == _FLOAT32)


def parse_formats(text: str) -> list[Format]:
    """Parse a comma-separated list, in the order of `FORMATS`; `all` is every one that is not `by_choice`.

    Raises:
        UsageError: a name is unknown (the nearest is named), or the list is empty.
    """
    names = {name.strip() for name in text.split(",") if name.strip()}
    if not names:
        raise UsageError(f"--formats is empty; expected all, or some of {', '.join(FORMATS)}")
    for name in sorted(names - {"all", *FORMATS}):
        near = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"expected all, or some of {', '.join(FORMATS)}"
        raise UsageError(f"there is no export format {name!r}; {hint}")
    return [f for f in FORMATS.values() if f.name in names or ("all" in names and not f.by_choice)]


def check_num_images(max_images: int | None) -> None:
    """Raise UsageError if an export would be judged on too few images (None: all)."""
    if max_images is not None and max_images < MIN_NUM_IMAGES:
        raise UsageError(
            f"--parity-images {max_images} is too few to publish on; expected {MIN_NUM_IMAGES} or more, or 0 for all "
            "of the validation split"
        )


def check_onnx_opset(opset: int) -> None:
    """Raise UsageError if tf2onnx cannot write `opset`."""
    if opset not in ONNX_OPSETS:
        raise UsageError(
            f"--onnx-opset {opset} is not an operator set that tf2onnx writes; expected {ONNX_OPSETS[0]} to "
            f"{ONNX_OPSETS[-1]}"
        )
