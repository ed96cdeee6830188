"""`DATASET/manifest.json`: what a prepared dataset holds. This module owns its format.

Layout of a prepared dataset:

    manifest.json
    <split>-00000-of-00008.tfrecord    TFRecord framing; each payload is a tf.train.Example, see `records`
    <split>-00000-of-00008.idx         offset, length, label and weight of every record, see `records.INDEX_DTYPE`
    bad_files.jsonl                    every source file that is left out, with the reason; only where there are some
"""

import hashlib
import pathlib
from typing import Any, Final, Literal

import pydantic

from trainer.data.dataset.storage import DatasetPath
from trainer.errors import DataError
from trainer.system import atomic
from trainer.system.names import ClassNames

FILE_NAME = "manifest.json"
BAD_FILES_NAME = "bad_files.jsonl"
SCHEMA_VERSION: Final = 2
# The reason in `num_left_out` of the files that `beside` names.
BESIDE_CLASSES: Final = "beside the class folders"
# The manifest is read whole by every worker: of what may be endless it lists the first so many.
MAX_LISTED = 1_000

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
# single_label: one class an example. multi_label: one or several.
Task = Literal["single_label", "multi_label"]

# given: by the source. train: cut from what the source has for training. rest: cut from what it puts into no split,
# while others are fixed to train. all: cut from a source that is not divided.
SplitOrigin = Literal["given", "train", "rest", "all"]


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class Shard(_Model):
    """One TFRecord file of a split and the index beside it."""

    file_name: str
    index_file_name: str
    num_examples: int = pydantic.Field(ge=0)
    num_bytes: int = pydantic.Field(ge=0)
    sha256: str
    index_sha256: str


class Split(_Model):
    """The shards of one split; example `i` of the split is counted through them in order.

    class_counts: examples that have the class, by label; they add up to more than the examples of several labels.
    """

    num_examples: int = pydantic.Field(ge=0)
    class_counts: list[int]
    shards: list[Shard]


class BadFile(_Model):
    """A source file that is not in the dataset, and why (`corrupt`, `truncated`, `empty`, `not an image`...)."""

    path: str
    reason: str


class Duplicate(_Model):
    """The same bytes in more than one split: what is measured on one was trained on in the other."""

    paths: dict[SplitName, str]


class DeepSamples(_Model):
    """Pictures of 16 bits a sample whose files do not say how many bits they use: so many files, and what was taken.

    highest: the highest value in all of them; `num_darker` of them would fit into fewer bits.
    bits: how many bits are taken as used, which makes the highest of them white; `is_given` where an option of
        `prepare` has said so, otherwise it follows from `highest`.
    """

    num_files: int = pydantic.Field(ge=1)
    highest: int = pydantic.Field(ge=0, lt=2**16)
    num_darker: int = pydantic.Field(0, ge=0)
    bits: int = pydantic.Field(ge=8, le=16)
    is_given: bool = False


class Manifest(_Model):
    """Everything that a reader needs to know of a dataset without opening a shard."""

    schema_version: Literal[2] = SCHEMA_VERSION
    name: str
    source: str
    class_names: ClassNames
    seed: int
    task: Task = "single_label"
    splits: dict[SplitName, Split]
    # Whether any example has a weight other than 1.
    has_weights: bool = False
    # What `prepare` was asked for, as it was given: fractions, classes left out, the largest side.
    options: dict[str, Any] = {}
    # Images that were not asked for, by what leaves them out (`--exclude`, `--fraction`, `--per-class`, `--train`).
    num_left_out: dict[str, int] = {}
    # Files among the images that are none, by kind, such as {"Thumbs.db": 2}; they are neither bad nor left out.
    num_ignored: dict[str, int] = {}
    # Files beside the class folders, the first `MAX_LISTED`; `num_left_out` counts all.
    beside: list[str] = []
    # Of each split; empty in datasets of an earlier version.
    split_origins: dict[SplitName, SplitOrigin] = {}
    # By the first word or words of the reason, such as {"truncated": 2}; `bad_files` lists the first `MAX_LISTED`.
    num_bad_files: dict[str, int] = {}
    bad_files: list[BadFile] = []
    # Files whose exact bytes are also in another split; `duplicates` lists the first `MAX_LISTED`.
    num_duplicates_across_splits: int = 0
    duplicates: list[Duplicate] = []
    # Changes that `prepare` made to the bytes, by kind, such as {"rotated upright": 3}; all else is untouched.
    num_reencoded: dict[str, int] = {}
    # None where there are none.
    deep_samples: DeepSamples | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def sample_bits(self) -> int | None:
        """How many bits are used in a file of 16 that does not say it, such as one to predict on; None: not known."""
        return None if self.deep_samples is None else self.deep_samples.bits

    @property
    def held_out_split(self) -> SplitName:
        """The split to measure a model on: test, or validation where there is no test."""
        return "test" if "test" in self.splits and self.splits["test"].num_examples else "validation"

    def content_hash(self) -> str:
        """SHA-256 over what the examples are: class names and shard checksums, not names of folders."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for name in SPLITS:
            if name in self.splits:
                digest.update(name.encode())
                for shard in self.splits[name].shards:
                    digest.update(bytes.fromhex(shard.sha256))
        return digest.hexdigest()

    def save(self, dataset_dir: pathlib.Path) -> None:
        """Writes the manifest into `dataset_dir`; written last, it makes the dataset readable."""
        atomic.write_text(dataset_dir / FILE_NAME, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, dataset_dir: DatasetPath) -> "Manifest":
        """Reads the manifest of a prepared dataset.

        Raises:
            DataError: `dataset_dir` is not a prepared dataset, or its manifest is of another version.
        """
        path = dataset_dir / FILE_NAME
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{dataset_dir} holds no {FILE_NAME}, so it is not a prepared dataset; "
                f"make one with: trainer prepare SOURCE --out {dataset_dir}"
            ) from None
        try:
            return cls.model_validate_json(content)
        except pydantic.ValidationError as e:
            first = e.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(
                f"{path} is not a manifest of schema version {SCHEMA_VERSION} ({where}: {first['msg']}); "
                "prepare the dataset again with this version of trainer"
            ) from None


def is_prepared(path: DatasetPath) -> bool:
    """Whether `path` is the directory of a finished dataset."""
    return (path / FILE_NAME).is_file()
