"""`DATASET/manifest.json`: the contents of a prepared dataset. This module owns its format.

Layout of a prepared dataset:

    manifest.json
    <split>-00000-of-00008.tfrecord    TFRecord framing; each payload is a tf.train.Example, see `records`
    <split>-00000-of-00008.idx         offset, length, label and weight of every record, see `records.INDEX_DTYPE`
    bad_files.jsonl                    every unusable source file, with the reason; only if there are any
"""

import hashlib
import json
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
# The last field of the file: the SHA-256 of all others, as JSON with sorted keys.
_SIGNATURE: Final = "sha256"
# The reason in `num_left_out` for the files listed in `beside`.
BESIDE_CLASSES: Final = "beside the class folders"
# Every worker reads the whole manifest, so lists without a bound are cut off after this many entries.
MAX_LISTED = 1_000

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
# single_label: one class per example. multi_label: one or several.
Task = Literal["single_label", "multi_label"]

# given: by the source. train: cut from the source's training images. rest: cut from images that the source assigns to
# no split, while it assigns others to train. all: cut from a source without splits.
SplitOrigin = Literal["given", "train", "rest", "all"]


class DamagedManifestError(DataError):
    """The fields of a manifest do not have the SHA-256 that was written with them."""


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class Shard(_Model):
    """A TFRecord file of a split and the index beside it."""

    file_name: str
    index_file_name: str
    num_examples: int = pydantic.Field(ge=0)
    num_bytes: int = pydantic.Field(ge=0)
    sha256: str
    index_sha256: str


class Split(_Model):
    """The shards of one split; examples are numbered through them in order.

    class_counts: examples of each class, by label; with several labels per example they sum to more than the examples.
    """

    num_examples: int = pydantic.Field(ge=0)
    class_counts: list[int]
    shards: list[Shard]


class BadFile(_Model):
    """A source file that cannot be used, and why (`corrupt`, `truncated`, `empty`, `not an image`...)."""

    path: str
    reason: str


class Duplicate(_Model):
    """A file with the same bytes in more than one split, which contaminates the evaluation."""

    paths: dict[SplitName, str]


class DeepSamples(_Model):
    """Images of 16 bits per sample whose files do not say how many of the bits are used.

    num_files: how many such files there are.
    highest: the highest value in all of them.
    num_darker: how many of them would fit into fewer bits.
    bits: how many bits are taken as used, so that the highest value of that many bits becomes white.
    is_given: true if an option of `prepare` set `bits`; otherwise it follows from `highest`.
    """

    num_files: int = pydantic.Field(ge=1)
    highest: int = pydantic.Field(ge=0, lt=2**16)
    num_darker: int = pydantic.Field(0, ge=0)
    bits: int = pydantic.Field(ge=8, le=16)
    is_given: bool = False


class Manifest(_Model):
    """The description of a dataset, for readers that have not opened a shard."""

    schema_version: Literal[2] = SCHEMA_VERSION
    name: str
    source: str
    class_names: ClassNames
    seed: int
    task: Task = "single_label"
    splits: dict[SplitName, Split]
    # True if any example has a weight other than 1.
    has_weights: bool = False
    # The options of `prepare` that determine the content, as given.
    options: dict[str, Any] = {}
    # Images left out on request, by option (`--exclude`, `--fraction`, `--per-class`, `--train`).
    num_left_out: dict[str, int] = {}
    # Files that are not images, by kind, for example {"Thumbs.db": 2}; they count neither as bad nor as left out.
    num_ignored: dict[str, int] = {}
    # Files outside the class folders, the first `MAX_LISTED`; `num_left_out` counts all.
    beside: list[str] = []
    # Empty in datasets of earlier versions.
    split_origins: dict[SplitName, SplitOrigin] = {}
    # By the first words of the reason, for example {"truncated": 2}; `bad_files` lists the first `MAX_LISTED`.
    num_bad_files: dict[str, int] = {}
    bad_files: list[BadFile] = []
    # Files whose exact bytes are also in another split; `duplicates` lists the first `MAX_LISTED`.
    num_duplicates_across_splits: int = 0
    duplicates: list[Duplicate] = []
    # Files that `prepare` re-encoded, by kind of change, for example {"rotated upright": 3}; others are unchanged.
    num_reencoded: dict[str, int] = {}
    # None if there are none.
    deep_samples: DeepSamples | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def sample_bits(self) -> int | None:
        """How many bits are used in 16-bit files that do not say so, also at prediction; None if unknown."""
        return None if self.deep_samples is None else self.deep_samples.bits

    @property
    def held_out_split(self) -> SplitName:
        """The split to measure a model on: test, or validation if there is no test split."""
        return "test" if "test" in self.splits and self.splits["test"].num_examples else "validation"

    def content_hash(self) -> str:
        """Return the SHA-256 of the content: class names and shard checksums, not folder names."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for name in SPLITS:
            if name in self.splits:
                digest.update(name.encode())
                for shard in self.splits[name].shards:
                    digest.update(bytes.fromhex(shard.sha256))
        return digest.hexdigest()

    def save(self, dataset_dir: pathlib.Path) -> None:
        """Write the manifest, with its own SHA-256, into `dataset_dir`; written last, it makes the dataset readable."""
        fields = self.model_dump_json(indent=2)
        signature = f',\n  "{_SIGNATURE}": "{_digest_of(json.loads(fields))}"\n}}\n'
        atomic.write_text(dataset_dir / FILE_NAME, fields.removesuffix("\n}") + signature)

    @classmethod
    def load(cls, dataset_dir: DatasetPath) -> "Manifest":
        """Read the manifest of a prepared dataset.

        Raises:
            DataError: `dataset_dir` is not a prepared dataset, or its manifest is damaged or of another schema version.
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
            return cls.model_validate_json(_without_signature(path, content))
        except pydantic.ValidationError as e:
            first = e.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(
                f"{path} is not a manifest of schema version {SCHEMA_VERSION} ({where}: {first['msg']}); "
                "prepare the dataset again with this version of trainer"
            ) from None


def _without_signature(path: DatasetPath, content: bytes) -> bytes:
    """Return `content` without the SHA-256 of its fields, which datasets of earlier versions do not have.

    Raises:
        DamagedManifestError: the fields have another SHA-256.
    """
    try:
        fields = json.loads(content)
        signature = fields.pop(_SIGNATURE, None)
    except (ValueError, RecursionError, AttributeError, TypeError):
        return content  # not a JSON object, which pydantic explains
    if signature is None:
        return content
    if signature != _digest_of(fields):
        raise DamagedManifestError(
            f"{path} was changed after it was written: its fields do not have the SHA-256 at its end; copy it again, "
            "or prepare the dataset again"
        )
    return json.dumps(fields).encode()


def _digest_of(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def is_prepared(path: DatasetPath) -> bool:
    """Return whether `path` is the directory of a finished dataset."""
    return (path / FILE_NAME).is_file()
