"""`RUN/evaluation/<split>.json`: the exact metrics of one split. This module owns its format.

The arrays that they were computed from lie beside them as `<split>.npz`: `labels` [n] int64, or multi-hot uint8
[n, num_classes] for multi_label, `logits` [n, num_classes] float32 and `global_step`; row i is example i of the split,
in the order of its shards.
"""

import json
import pathlib
import zipfile
from typing import Final, Literal

import numpy as np
import pydantic

from trainer.errors import RunError
from trainer.metrics.calibration import ReliabilityBin, is_at_bound
from trainer.metrics.scores import Labels, Logits, Task
from trainer.system import atomic

SCHEMA_VERSION: Final = 2

Interval = tuple[float, float]


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class ClassMetrics(_Model):
    """One class against all others; 0 where a quotient is undefined (never predicted, or no examples).

    support: examples that have the class.
    roc_auc, average_precision: of the ranking by probability; null where the split has no example of the class, or,
        for roc_auc, no other.
    threshold: for multi_label, from which probability on the class is predicted.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    roc_auc: float | None
    average_precision: float | None
    threshold: float | None = None


class MacroAverage(_Model):
    """Unweighted means over the classes that occur in the split, as a label or as a prediction."""

    precision: float
    recall: float
    f1: float


class Ranking(_Model):
    """Areas under curves: for binary of the positive class, otherwise means over the classes that have one.

    average_precision: for several classes, mAP; micro_average_precision: all pairs of example and class in one list.
    """

    roc_auc: float | None
    average_precision: float | None
    micro_average_precision: float | None


class AtThresholds(_Model):
    """What a set of thresholds gives: one a class, or for binary that of the positive class alone.

    f1: for binary of the positive class, otherwise the macro average. accuracy: exactly the true classes are
    predicted. hamming_loss: share of the pairs of example and class that are wrong.
    """

    thresholds: list[float]
    accuracy: float
    hamming_loss: float
    precision: float
    recall: float
    f1: float
    micro_f1: float


class Calibration(_Model):
    """Whether probabilities are as often right as they say, as they are and divided by the tuned temperature.

    ece: expected calibration error over the bins, which are of equal width.
    """

    ece: float
    bins: list[ReliabilityBin]
    ece_with_temperature: float | None
    loss_with_temperature: float | None
    bins_with_temperature: list[ReliabilityBin]


class Tuning(_Model):
    """What was fitted on the validation split, at `global_step`; `thresholds` is null for single_label, `temperature`
    where none calibrates (see `fit_temperature`).

    On the validation split itself the figures that it gives are optimistic.
    """

    global_step: int
    weights: str
    dataset_hash: str | None
    temperature: float | None
    thresholds: list[float] | None

    @pydantic.field_validator("temperature")
    @classmethod
    def _leave_out_a_bound(cls, temperature: float | None) -> float | None:
        # Evaluations of before recorded the end of the search where it had found nothing.
        return None if temperature is not None and is_at_bound(temperature) else temperature


class Intervals(_Model):
    """95% bootstrap intervals over the examples, each around its metric; null where too many resamples do not define
    it, or, for the areas, where the split is too large to resample them."""

    num_resamples: int
    accuracy: Interval | None
    macro_f1: Interval | None
    average_precision: Interval | None
    roc_auc: Interval | None


class Slice(_Model):
    """The figures of the examples whose `column` is `value`; averages as in the evaluation itself."""

    column: str
    value: str
    num_examples: int
    accuracy: float
    accuracy_interval: Interval
    macro_f1: float
    average_precision: float | None
    loss: float


class Evaluation(_Model):
    """The exact metrics of one split at one step.

    weights: raw, averages or auto, as the evaluation was asked for.
    dataset_hash: content of the dataset that was evaluated; null where it is not known.
    accuracy: share of examples that are predicted right; for multi_label exactly right, at the tuned thresholds.
    accuracy_interval: 95% Wilson score interval of the accuracy.
    top5_accuracy: the label is among the `min(5, num_classes)` largest logits; null for multi_label.
    loss: mean cross-entropy in nats, without label smoothing or weight decay.
    at_thresholds: at one half and then at the tuned thresholds; none for single_label.
    confusion_matrix: [true class][predicted class], counts; null for multi_label, and for more than 2,000 classes.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    task: Task
    split: str
    global_step: int
    weights: str = "auto"
    dataset_hash: str | None = None
    class_names: list[str]
    num_examples: int
    accuracy: float
    accuracy_interval: Interval
    top5_accuracy: float | None
    loss: float
    macro: MacroAverage
    ranking: Ranking
    at_thresholds: list[AtThresholds]
    calibration: Calibration
    tuning: Tuning | None
    intervals: Intervals | None
    classes: list[ClassMetrics]
    slices: list[Slice]
    confusion_matrix: list[list[int]] | None

    def save(self, evaluation_dir: pathlib.Path) -> pathlib.Path:
        """Writes `<split>.json` atomically; call `save_arrays` first, so that the metrics never lack their arrays."""
        evaluation_dir.mkdir(parents=True, exist_ok=True)
        path = evaluation_dir / f"{self.split}.json"
        atomic.write_text(path, self._to_json())
        return path

    def _to_json(self) -> str:
        # One row of the matrix a line: indented all through, 1,000 classes would be a million lines.
        content = self.model_dump(mode="json")
        matrix = content.pop("confusion_matrix")
        head = json.dumps(content, indent=2, allow_nan=False).removesuffix("\n}")
        if matrix is None:
            return f'{head},\n  "confusion_matrix": null\n}}\n'
        rows = ",\n".join(f"    {json.dumps(row)}" for row in matrix)
        return f'{head},\n  "confusion_matrix": [\n{rows}\n  ]\n}}\n'

    @classmethod
    def load(cls, evaluation_dir: pathlib.Path, split: str) -> "Evaluation":
        """Reads `<split>.json`.

        Raises:
            RunError: the split was not evaluated, or the file is of another version.
        """
        path = evaluation_dir / f"{split}.json"
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(
                f"the run {evaluation_dir.parent} holds no evaluation of the split {split!r}; "
                f"{_evaluate_again(evaluation_dir, split)}"
            ) from None
        except pydantic.ValidationError as e:
            raise RunError(
                f"{path} is not an evaluation of schema version {SCHEMA_VERSION} ({e.errors()[0]['msg']}); "
                f"{_evaluate_again(evaluation_dir, split)}"
            ) from None


def save_arrays(
    evaluation_dir: pathlib.Path, *, split: str, global_step: int, labels: Labels, logits: Logits
) -> pathlib.Path:
    """Writes `<split>.npz` atomically."""
    evaluation_dir.mkdir(parents=True, exist_ok=True)
    path = evaluation_dir / f"{split}.npz"
    labels_dtype = np.int64 if labels.ndim == 1 else np.uint8
    with atomic.new_file(path) as file:
        np.savez_compressed(
            file,
            labels=labels.astype(labels_dtype, copy=False),
            logits=logits.astype(np.float32, copy=False),
            global_step=np.int64(global_step),
        )
    return path


def load_arrays(evaluation_dir: pathlib.Path, evaluation: Evaluation) -> tuple[Labels, Logits]:
    """The labels and logits that `evaluation` was computed from.

    Raises:
        RunError: they are missing, unreadable, or of another evaluation.
    """
    split = evaluation.split
    path = evaluation_dir / f"{split}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            labels, logits, global_step = arrays["labels"], arrays["logits"], int(arrays["global_step"])
    except FileNotFoundError:
        raise RunError(f"{path} is missing; {_evaluate_again(evaluation_dir, split)}") from None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        raise RunError(f"{path} is not readable ({e}); {_evaluate_again(evaluation_dir, split)}") from None
    shape = (evaluation.num_examples, len(evaluation.class_names))
    label_shape = shape if evaluation.task == "multi_label" else shape[:1]
    if global_step != evaluation.global_step or logits.shape != shape or labels.shape != label_shape:
        raise RunError(
            f"{path} holds logits {list(logits.shape)} of step {global_step}, but {split}.json is about "
            f"{list(shape)} of step {evaluation.global_step}; {_evaluate_again(evaluation_dir, split)}"
        )
    return labels, logits


def _evaluate_again(evaluation_dir: pathlib.Path, split: str) -> str:
    return f"make it with: trainer evaluate {evaluation_dir.parent} --split {split}"
