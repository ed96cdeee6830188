"""`DATASET/manifest.json`: what a prepared dataset holds. This module owns its format.

Layout of a prepared dataset:

    manifest.json
    <split>-00000-of-00008.tfrecord    TFRecord framing; each payload is a tf.train.Example, see `records`
    <split>-00000-of-00008.idx         little-endian uint64 pairs (payload offset, payload length), in order
"""

import hashlib
import pathlib
from typing import Final, Literal

import pydantic

from trainer import atomic
from trainer.errors import DataError

FILE_NAME = "manifest.json"
SCHEMA_VERSION: Final = 1

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


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
    """The shards of one split; example `i` of the split is counted through them in order."""

    num_examples: int = pydantic.Field(ge=0)
    class_counts: list[int]
    shards: list[Shard]


class BadFile(_Model):
    """A source file that is not in the dataset, and why (`corrupt`, `truncated`, `empty`, `not an image`...)."""

    path: str
    reason: str


class Manifest(_Model):
    """Everything that a reader needs to know of a dataset without opening a shard."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    source: str
    class_names: list[str]
    seed: int
    splits: dict[SplitName, Split]
    bad_files: list[BadFile] = []
    # Changes that `prepare` made to the bytes, by kind, such as {"rotated upright": 3}; all else is untouched.
    num_reencoded: dict[str, int] = {}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

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
    def load(cls, dataset_dir: pathlib.Path) -> "Manifest":
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


def is_prepared(path: pathlib.Path) -> bool:
    """Whether `path` is the directory of a finished dataset."""
    return (path / FILE_NAME).is_file()
