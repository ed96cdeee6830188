"""`EXPORT/golden.npz`: a few real images with the expected answers, so that any machine can replay an export.

    images           [n, size, size, 3] uint8   at the model's size
    encoded          [total] uint8              the n encoded files, end to end
    encoded_lengths  [n] int64                  bytes of each
    class_ids        [n] int64                  true classes; multi-hot, [n, classes], for multi-label
    probabilities    [n, classes] float32       the trained model's answers
    answers/<title>  [n, classes] float32       each artifact's answers, by the title of its comparison

A zip of .npy files without pickled objects; deterministic.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from export.files.arrays import DAMAGED, join_files, read_arrays, split_files, write_arrays
from export.files.formats import Budget
from export.files.signature import Signature
from export.gate.decisions import decide
from export.gate.information import find_uninformative, spread_of
from export.runtime.runtimes import Probabilities, Runtime
from export.runtime.samples import Batch, ImageSource, iterate_batches, read_batch, spread_indices
from trainer.errors import ArtifactError

FILE_NAME = "golden.npz"
NUM_IMAGES = 16
# The golden images are chosen among this many.
_NUM_CANDIDATES = 4 * NUM_IMAGES
_BATCH_SIZE = 32
_MAX_SHARE_UNINFORMATIVE = 0.25
# Share of the spread of the answers: if all are small, an absolute limit would let a file answer anything.
_MAX_SHARE_OF_SPREAD = 0.4
_ANSWERS = "answers/"


def choose_golden_images(source: ImageSource, reference: Runtime, signature: Signature) -> Batch:
    """Choose the images with the most confident answers of every predicted class.

    They are chosen among images evenly spread over `source`; deterministic for a model.
    """
    indices = spread_indices(source.num_images, _NUM_CANDIDATES)
    batches = iterate_batches(source, indices, signature.geometry, _BATCH_SIZE)
    answers = np.concatenate([reference.predict_probabilities(batch.images) for batch in batches])
    decisions = decide(answers, signature.thresholds)
    rank_in_class: dict[bytes, int] = {}
    turns = np.zeros(len(indices), np.int64)
    surest_first = np.argsort(answers.min(axis=-1) - answers.max(axis=-1), kind="stable")
    for place in surest_first:
        key = decisions[place].tobytes()
        turns[place] = rank_in_class[key] = rank_in_class.get(key, -1) + 1
    chosen = sorted(surest_first[np.argsort(turns[surest_first], kind="stable")][:NUM_IMAGES])
    return read_batch(source, indices[chosen], signature.geometry)


def max_replay_difference(budget: Budget, published: Probabilities) -> float:
    """Return the largest allowed difference from the `published` answers."""
    return min(budget.max_replay_difference, _MAX_SHARE_OF_SPREAD * spread_of(published))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Golden:
    """The content of `golden.npz`; `answers` is keyed by `Comparison.title`."""

    batch: Batch
    probabilities: Probabilities
    answers: dict[str, Probabilities]

    def describe_uninformative(self, title: str, thresholds: Sequence[float] | None) -> str | None:
        """Return a failure if too many of an artifact's answers are uninformative for a replay to prove anything."""
        uninformative = find_uninformative(self.probabilities, self.answers[title], thresholds)
        if uninformative.mean() <= _MAX_SHARE_UNINFORMATIVE:
            return None
        count = f"{uninformative.sum()} of {len(uninformative)}"
        return f"its answers to {count} golden images are uninformative; export again"

    def save(self, directory: pathlib.Path) -> None:
        arrays = {
            "images": self.batch.images,
            **join_files(self.batch.encoded),
            "class_ids": self.batch.class_ids,
            "probabilities": self.probabilities,
            **{_ANSWERS + title: values for title, values in self.answers.items()},
        }
        write_arrays(directory / FILE_NAME, arrays)

    @classmethod
    def load(cls, directory: pathlib.Path) -> "Golden":
        """Load the file. Raises ArtifactError if it is missing or malformed."""
        path = directory / FILE_NAME
        try:
            arrays = read_arrays(path)
            return cls(
                batch=Batch(split_files(arrays), arrays["images"], arrays["class_ids"]),
                probabilities=arrays["probabilities"],
                answers={n.removeprefix(_ANSWERS): a for n, a in arrays.items() if n.startswith(_ANSWERS)},
            )
        except FileNotFoundError:
            raise ArtifactError(
                f"{directory} is not a finished export (it holds no {FILE_NAME}); export again"
            ) from None
        except DAMAGED as e:
            raise ArtifactError(f"{path} does not hold golden images ({e}); copy the export again") from None
