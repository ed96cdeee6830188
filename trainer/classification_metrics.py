"""`RUN/evaluation/<split>.json`: the exact metrics of one split. This module owns its format.

Everything here is computed from the whole split at once, from labels and logits alone, so it cannot depend on
batches, replicas or the order of the examples. The arrays themselves lie beside the metrics as `<split>.npz`:
`labels` [n] int64, `logits` [n, num_classes] float32 and `global_step`; row i is example i of the split, in the
order of its shards.
"""

import io
import json
import math
import pathlib
import zipfile
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pydantic

from trainer import atomic
from trainer.errors import DataError, RunError, TrainingError

SCHEMA_VERSION: Final = 1
TOP_K = 5

Labels = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

# Two-sided 95% of the standard normal distribution.
_Z_95 = 1.959963984540054
# Rows of float64 softmax at a time: 1,000 classes then take 32 MB whatever the size of the split.
_BLOCK_ROWS = 4096


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class ClassMetrics(_Model):
    """One class against all others; 0 where the quotient is undefined (never predicted, or no examples)."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


class MacroAverage(_Model):
    """Unweighted means over the classes that occur in the split, as a label or as a prediction."""

    precision: float
    recall: float
    f1: float


class Evaluation(_Model):
    """The exact metrics of one split at one step.

    accuracy_interval: 95% Wilson score interval of the accuracy.
    top5_accuracy: the label is among the `min(5, num_classes)` largest logits.
    loss: mean cross-entropy in nats, without label smoothing or weight decay.
    confusion_matrix: [true class][predicted class], counts.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    split: str
    global_step: int
    class_names: list[str]
    num_examples: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    top5_accuracy: float
    loss: float
    macro: MacroAverage
    classes: list[ClassMetrics]
    confusion_matrix: list[list[int]]

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
            raise RunError(_not_evaluated(evaluation_dir, split)) from None
        except pydantic.ValidationError as e:
            raise RunError(
                f"{path} is not an evaluation of schema version {SCHEMA_VERSION} ({e.errors()[0]['msg']}); "
                f"{_evaluate_again(evaluation_dir, split)}"
            ) from None


def summarize(labels: Labels, logits: Logits, class_names: list[str], *, split: str, global_step: int) -> Evaluation:
    """The metrics of a whole split.

    Args:
        labels: [n] int64, each in [0, num_classes).
        logits: [n, num_classes] float32; among equal logits the class with the lower index comes first.
        class_names: num_classes names, in the order of the logits.
        split: names the split in the result and in errors.
        global_step: the step whose weights gave the logits.

    Raises:
        DataError: the split is empty, or a label is out of range.
        TrainingError: a logit is NaN or infinite.
    """
    from sklearn import metrics

    _check(labels, logits, class_names, split, global_step)
    # The place of the true class among the logits; equal ones count by index, as argmax does.
    true_logits = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(len(class_names))[None, :] < labels[:, None]
    place = np.sum((logits > true_logits) | ((logits == true_logits) & earlier), axis=1)
    num_correct = int(np.sum(place == 0))

    predicted = np.argmax(logits, axis=1)
    classes = np.arange(len(class_names))
    per_class = metrics.precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0.0)
    macro = metrics.precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0.0)
    return Evaluation(
        split=split,
        global_step=global_step,
        class_names=class_names,
        num_examples=len(labels),
        accuracy=num_correct / len(labels),
        accuracy_interval=wilson_interval(num_correct, len(labels)),
        top5_accuracy=float(np.mean(place < TOP_K)),
        loss=_mean_cross_entropy(labels, logits),
        macro=MacroAverage(precision=float(macro[0]), recall=float(macro[1]), f1=float(macro[2])),
        classes=[
            ClassMetrics(name=name, precision=float(p), recall=float(r), f1=float(f), support=int(s))
            for name, p, r, f, s in zip(class_names, *per_class, strict=True)
        ],
        confusion_matrix=metrics.confusion_matrix(labels, predicted, labels=classes).tolist(),
    )


def wilson_interval(num_correct: int, num_examples: int) -> tuple[float, float]:
    """The 95% score interval of a proportion: Wilson, JASA 22 (1927), 209-212.

    Unlike the normal approximation it stays inside [0, 1] and is right for accuracies near 1.
    """
    n, z2 = num_examples, _Z_95**2
    proportion = num_correct / n
    centre = (proportion + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 / (1 + z2 / n) * math.sqrt(proportion * (1 - proportion) / n + z2 / (4 * n * n))
    # At 0 and n correct one end is exactly 0 or 1; rounding must not push it out.
    low = 0.0 if num_correct == 0 else centre - half
    high = 1.0 if num_correct == n else centre + half
    return low, high


def softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Probabilities [n, num_classes] in float64."""
    probabilities: npt.NDArray[np.float64] = np.exp(_log_softmax(logits))
    return probabilities


def save_arrays(
    evaluation_dir: pathlib.Path, *, split: str, global_step: int, labels: Labels, logits: Logits
) -> pathlib.Path:
    """Writes `<split>.npz` atomically: labels [n] int64, logits [n, num_classes] float32, global_step."""
    evaluation_dir.mkdir(parents=True, exist_ok=True)
    path = evaluation_dir / f"{split}.npz"
    content = io.BytesIO()
    np.savez_compressed(
        content, labels=labels.astype(np.int64), logits=logits.astype(np.float32), global_step=np.int64(global_step)
    )
    atomic.write_bytes(path, content.getvalue())
    return path


def load_arrays(evaluation_dir: pathlib.Path, evaluation: Evaluation) -> tuple[Labels, Logits]:
    """The labels [n] and logits [n, num_classes] that `evaluation` was computed from.

    Raises:
        RunError: they are missing, unreadable, or of another evaluation.
    """
    split = evaluation.split
    path = evaluation_dir / f"{split}.npz"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            labels, logits, global_step = arrays["labels"], arrays["logits"], int(arrays["global_step"])
    except FileNotFoundError:
        raise RunError(f"{path} is missing; {_evaluate_again(evaluation_dir, split)}") from None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        raise RunError(f"{path} is not readable ({e}); {_evaluate_again(evaluation_dir, split)}") from None
    shape = (evaluation.num_examples, len(evaluation.class_names))
    if global_step != evaluation.global_step or logits.shape != shape or labels.shape != shape[:1]:
        raise RunError(
            f"{path} holds logits {list(logits.shape)} of step {global_step}, but {split}.json is about "
            f"{list(shape)} of step {evaluation.global_step}; {_evaluate_again(evaluation_dir, split)}"
        )
    return labels, logits


def _check(labels: Labels, logits: Logits, class_names: list[str], split: str, global_step: int) -> None:
    assert labels.ndim == 1 and logits.shape == (len(labels), len(class_names)), (labels.shape, logits.shape)
    if len(labels) == 0:
        raise DataError(
            f"the split {split!r} holds no examples, so there is nothing to measure; "
            "evaluate another split, or prepare the dataset with a share for this one"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if outside.size:
        raise DataError(
            f"example {outside[0]} of the split {split!r} has label {labels[outside[0]]}, expected 0 to "
            f"{len(class_names) - 1} for {len(class_names)} classes; prepare the dataset again"
        )
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if broken.size:
        raise TrainingError(
            f"{broken.size} of {len(labels)} examples of the split {split!r} got NaN or infinite logits at step "
            f"{global_step} (the first is example {broken[0]}), expected finite ones: the weights have diverged; "
            "evaluate an earlier checkpoint, or train again with a lower optimizer.learning_rate"
        )


def _mean_cross_entropy(labels: Labels, logits: Logits) -> float:
    losses: list[float] = []
    for start in range(0, len(labels), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        log_probabilities = _log_softmax(logits[rows])
        losses.extend((-np.take_along_axis(log_probabilities, labels[rows, None], axis=1)[:, 0]).tolist())
    # An exact sum is the same in any order of the examples, and so on any number of replicas.
    return math.fsum(losses) / len(losses)


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _not_evaluated(evaluation_dir: pathlib.Path, split: str) -> str:
    return (
        f"the run {evaluation_dir.parent} holds no evaluation of the split {split!r}; "
        f"{_evaluate_again(evaluation_dir, split)}"
    )


def _evaluate_again(evaluation_dir: pathlib.Path, split: str) -> str:
    return f"make it with: trainer evaluate {evaluation_dir.parent} --split {split}"
