"""`RUN/evaluation/<split>.json`: the exact metrics of one split. This module owns its format.

`<split>.npz` beside it holds the arrays they were computed from: `labels` [n] int64, or multi-hot uint8
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
    """The metrics of one class against all others; 0 where a ratio is undefined (never predicted, or no examples).

    support: the number of examples that have the class.
    roc_auc, average_precision: null if the split has no example of the class, or, for roc_auc, no other example.
    threshold: for multi_label, the probability from which the class is predicted.
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
    """Unweighted means over the classes that occur in the split as a label or a prediction."""

    precision: float
    recall: float
    f1: float


class Ranking(_Model):
    """Areas under curves: of the positive class for binary, otherwise means over the classes where they are defined.

    average_precision: mAP, for several classes.
    micro_average_precision: over all pairs of example and class in one ranking.
    """

    roc_auc: float | None
    average_precision: float | None
    micro_average_precision: float | None


class AtThresholds(_Model):
    """The metrics at one threshold per class, or for binary at that of the positive class.

    accuracy: the share of examples for which exactly the true classes are predicted.
    hamming_loss: the share of pairs of example and class that are wrong.
    f1: of the positive class for binary, otherwise the macro average.
    """

    thresholds: list[float]
    accuracy: float
    hamming_loss: float
    precision: float
    recall: float
    f1: float
    micro_f1: float


class Calibration(_Model):
    """The calibration of the probabilities, without and with the tuned temperature.

    ece: the expected calibration error over bins of equal width.
    """

    ece: float
    bins: list[ReliabilityBin]
    ece_with_temperature: float | None
    loss_with_temperature: float | None
    bins_with_temperature: list[ReliabilityBin]


class Tuning(_Model):
    """The temperature and thresholds fitted on the validation split at `global_step`.

    Metrics on the validation split itself are therefore optimistic.

    temperature: null if none calibrates (see `fit_temperature`).
    thresholds: null for single_label.
    """

    global_step: int
    weights: str
    dataset_hash: str | None
    temperature: float | None
    thresholds: list[float] | None

    @pydantic.field_validator("temperature")
    @classmethod
    def _leave_out_a_bound(cls, temperature: float | None) -> float | None:
        # Earlier versions recorded the bound of the search when no temperature was found.
        return None if temperature is not None and is_at_bound(temperature) else temperature


class Intervals(_Model):
    """95% bootstrap intervals; null if too few resamples define the metric, or the split is too large (areas only)."""

    num_resamples: int
    accuracy: Interval | None
    macro_f1: Interval | None
    average_precision: Interval | None
    roc_auc: Interval | None


class Slice(_Model):
    """The metrics of the examples whose `column` is `value`; averages as in `Evaluation`."""

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

    weights: raw, averages or auto, as requested.
    dataset_hash: the content hash of the dataset; null if unknown.
    accuracy: the share of correct predictions; for multi_label, of exact matches at the tuned thresholds.
    accuracy_interval: 95% Wilson score interval of the accuracy.
    top5_accuracy: the label is among the `min(5, num_classes)` largest logits; null for multi_label.
    loss: mean cross-entropy in nats, without label smoothing or weight decay.
    at_thresholds: at thresholds of 0.5, then at the tuned ones; empty for single_label.
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
        """Write `<split>.json` atomically; call `save_arrays` first, so that metrics always have their arrays."""
        evaluation_dir.mkdir(parents=True, exist_ok=True)
        path = evaluation_dir / f"{self.split}.json"
        atomic.write_text(path, self._to_json())
        return path

    def _to_json(self) -> str:
        # One line per row of the matrix: fully indented, 1,000 classes would make a million lines.
        content = self.model_dump(mode="json")
        matrix = content.pop("confusion_matrix")
        head = json.dumps(content, indent=2, allow_nan=False).removesuffix("\n}")
        if matrix is None:
            return f'{head},\n  "confusion_matrix": null\n}}\n'
        rows = ",\n".join(f"    {json.dumps(row)}" for row in matrix)
        return f'{head},\n  "confusion_matrix": [\n{rows}\n  ]\n}}\n'

    @classmethod
    def load(cls, evaluation_dir: pathlib.Path, split: str) -> "Evaluation":
        """Read `<split>.json`.

        Raises:
            RunError: the split was not evaluated, or the file has another schema version.
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
    """Write `<split>.npz` atomically."""
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
    """Read the labels and logits that `evaluation` was computed from.

    Raises:
        RunError: they are missing, unreadable, or belong to another evaluation.
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
