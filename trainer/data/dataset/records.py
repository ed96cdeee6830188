"""The records of a prepared dataset: TFRecord shards, each with an index of offsets beside it.

A shard has TFRecord framing (`tf.data.TFRecordDataset` reads it); each payload is a serialized
`tf.train.Example` with the features

    image/encoded      bytes   an encoded image that `preprocess.decode_image` reads
    image/class/label  int64   index into `Manifest.class_names`; several, in rising order, for several labels
    image/weight       float   weight of the example in the loss, or in weighted sampling; 1.0 if absent
    image/format       bytes   b"jpeg", b"png", b"gif", b"bmp" or b"webp"
    image/filename     bytes   UTF-8 path of the image, relative to the source
    image/height       int64   pixels
    image/width        int64   pixels

Its `.idx` holds an entry of `INDEX_DTYPE` for each record in order (offset and length of the payload, label,
weight; little-endian): reading an example takes one positioned read, sampling by class or weight none. Reading and
building payloads needs no TensorFlow; writing shards and parsing import it when called. `checks` and `split_reader`
say when what is verified.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import struct
import types
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from trainer.data.dataset import example_proto as wire
from trainer.data.dataset.framing import FOOTER_BYTES, HEADER_BYTES
from trainer.data.dataset.manifest import Manifest, Shard, Split, SplitName
from trainer.data.dataset.storage import DatasetPath, num_bytes_of, read_blocks
from trainer.errors import DataError

Tensor = Any

_ENCODED, _LABEL, _FORMAT, _FILENAME = "image/encoded", "image/class/label", "image/format", "image/filename"
_HEIGHT, _WIDTH, _WEIGHT = "image/height", "image/width", "image/weight"

# An entry of an index. `label` is -1 for an example with several labels.
INDEX_DTYPE = np.dtype([("offset", "<u8"), ("length", "<u8"), ("label", "<i4"), ("weight", "<f4")])
_INDEX_ENTRY = struct.Struct("<QQif")
SEVERAL_LABELS = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One labelled image as it is stored. `format` is "jpeg", "png", "gif", "bmp" or "webp"; sizes are in pixels.

    labels: at least one, in rising order; `weight` is above 0.
    """

    encoded: bytes
    labels: tuple[int, ...]
    format: str
    filename: str
    height: int
    width: int
    weight: float = 1.0

    @property
    def label(self) -> int:
        """The label, or `SEVERAL_LABELS`."""
        return self.labels[0] if len(self.labels) == 1 else SEVERAL_LABELS

    def to_payload(self) -> bytes:
        """Serialize to a `tf.train.Example`, deterministically."""
        return wire.example((
            wire.int_entry(_LABEL, *self.labels),
            wire.bytes_entry(_ENCODED, self.encoded),
            # A POSIX file name is bytes; surrogates in the text turn back into those that are not UTF-8.
            wire.bytes_entry(_FILENAME, os.fsencode(self.filename)),
            wire.short_bytes_entry(_FORMAT, self.format.encode()),
            wire.int_entry(_HEIGHT, self.height),
            b"" if self.weight == 1.0 else wire.float_entry(_WEIGHT, self.weight),
            wire.int_entry(_WIDTH, self.width),
        ))  # fmt: skip

    @classmethod
    def from_payload(cls, payload: bytes) -> "Example":
        """Parse the result of `to_payload`."""
        import tensorflow as tf

        feature = tf.train.Example.FromString(payload).features.feature
        return cls(
            encoded=feature[_ENCODED].bytes_list.value[0],
            labels=tuple(feature[_LABEL].int64_list.value),
            format=feature[_FORMAT].bytes_list.value[0].decode(),
            filename=os.fsdecode(feature[_FILENAME].bytes_list.value[0]),
            height=feature[_HEIGHT].int64_list.value[0],
            width=feature[_WIDTH].int64_list.value[0],
            weight=feature[_WEIGHT].float_list.value[0] if _WEIGHT in feature else 1.0,
        )


class ShardWriter:
    """A writer of one shard and its index, a record at a time; after the `with` block, `shard` describes them.

    Memory use does not grow with the number of records. Writing raises OSError if the disk is full. If an exception
    leaves the block there is no `shard`, and the files are incomplete: write into a directory that is not read yet. The
    files of `shard` are flushed to the disk.
    """

    def __init__(self, directory: pathlib.Path, stem: str) -> None:
        """Name the files `<stem>.tfrecord` and `<stem>.idx`, for example with stem "train-00000-of-00008"."""
        self._path = directory / f"{stem}.tfrecord"
        self._index_path = directory / f"{stem}.idx"
        self._next_offset = 0
        self._num_examples = 0
        self._shard: Shard | None = None
        self._records: Any = None
        self._index: IO[bytes] | None = None

    def __enter__(self) -> "ShardWriter":
        import tensorflow as tf

        self._index = self._index_path.open("wb")
        self._records = tf.io.TFRecordWriter(str(self._path))
        return self

    def write(self, example: Example) -> None:
        """Append one record."""
        self.write_payload(example.to_payload(), label=example.label, weight=example.weight)

    def write_payload(self, payload: bytes, *, label: int, weight: float) -> None:
        """Append a payload of `Example.to_payload`, which may have been called in another thread."""
        assert self._index is not None, "write inside the with block"
        with _as_os_error():
            self._records.write(payload)
        offset = self._next_offset + HEADER_BYTES
        self._index.write(_INDEX_ENTRY.pack(offset, len(payload), label, weight))
        self._next_offset += HEADER_BYTES + len(payload) + FOOTER_BYTES
        self._num_examples += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        assert self._index is not None, "entered"
        with self._index, _as_os_error():
            self._records.close()
        if error is None:
            for path in (self._path, self._index_path):
                with path.open("rb") as f:
                    os.fsync(f.fileno())
            self._shard = Shard(
                file_name=self._path.name,
                index_file_name=self._index_path.name,
                num_examples=self._num_examples,
                num_bytes=self._path.stat().st_size,
                sha256=sha256_of(self._path),
                index_sha256=sha256_of(self._index_path),
            )

    @property
    def shard(self) -> Shard:
        assert self._shard is not None, "the shard is known after a clean exit of the with block"
        return self._shard


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as e:
        raise OSError(e.message) from e


def has_label(payload: bytes, label: int) -> bool:
    """Return whether an intact payload has the one label `label`; always true for `SEVERAL_LABELS`.

    Takes a microsecond: `to_payload` writes the label first, after the tag and the size of the features.
    """
    if label == SEVERAL_LABELS:
        return True
    start = 1
    while start < len(payload) and payload[start] & 0x80:
        start += 1
    return payload.startswith(wire.int_entry(_LABEL, label), start + 1) or _parse_label(payload) == label


def _parse_label(payload: bytes) -> int | None:
    """Return the label of a payload that another writer made, with its features in another order."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        labels = tf.train.Example.FromString(payload).features.feature[_LABEL].int64_list.value
    except DecodeError:
        return None
    return int(labels[0]) if len(labels) == 1 else None


def parse_examples(payloads: Tensor, num_multi_hot: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Parse serialized examples, a string tensor [n], in the graph.

    Returns:
        Encoded images [n] string; labels [n] int64, or, if `num_multi_hot` is given, multi-hot [n, num_multi_hot]
        float32; weights [n] float32.
    """
    import tensorflow as tf

    spec = {
        _ENCODED: tf.io.FixedLenFeature([], tf.string),
        _WEIGHT: tf.io.FixedLenFeature([], tf.float32, default_value=1.0),
        _LABEL: tf.io.FixedLenFeature([], tf.int64) if num_multi_hot is None else tf.io.RaggedFeature(tf.int64),
    }
    features = tf.io.parse_example(payloads, spec)
    labels = features[_LABEL]
    if num_multi_hot is not None:
        labels = tf.reduce_max(tf.one_hot(labels.to_tensor(default_value=-1), num_multi_hot), axis=1)
    return features[_ENCODED], labels, features[_WEIGHT]


def split_of(dataset_dir: DatasetPath, manifest: Manifest, split: SplitName) -> Split:
    """Return a split of the manifest; raise DataError if there is none of that name."""
    if split not in manifest.splits:
        known = ", ".join(manifest.splits)
        raise DataError(f"the dataset {dataset_dir} has no split {split!r}; it has {known}: name one of these")
    return manifest.splits[split]


def check_size(path: DatasetPath, num_bytes: int) -> None:
    """Raise DataError if a file named in the manifest is missing or has another size."""
    try:
        found = num_bytes_of(path)
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing, and the manifest names it; copy it again, or prepare the dataset again"
        ) from None
    if found != num_bytes:
        what = "truncated" if found < num_bytes else "too long"
        raise DataError(
            f"{path} is {what}: {found} bytes where the manifest says {num_bytes}; "
            "copy it again, or prepare the dataset again"
        )


def checksum_error(path: DatasetPath, found: str, expected: str) -> DataError:
    """Return the error of a file whose SHA-256 is not the one in the manifest."""
    return DataError(
        f"{path} fails its checksum: SHA-256 {found[:12]}... where the manifest says {expected[:12]}...; "
        "copy it again, or prepare the dataset again"
    )


def sha256_of(path: DatasetPath) -> str:
    digest = hashlib.sha256()
    for block in read_blocks(path):
        digest.update(block)
    return digest.hexdigest()
