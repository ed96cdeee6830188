"""The records of a prepared dataset: TFRecord shards with an index of offsets beside each.

A shard has TFRecord framing (`tf.data.TFRecordDataset` reads it); each payload is a serialized
`tf.train.Example` with the features

    image/encoded      bytes   an encoded image that `preprocess.decode_image` reads
    image/class/label  int64   index into `Manifest.class_names`; several, in rising order, for several labels
    image/weight       float   weight of the example in the loss, or in weighted sampling; 1.0 where left out
    image/format       bytes   b"jpeg", b"png", b"gif", b"bmp" or b"webp"
    image/filename     bytes   UTF-8 path of the image, relative to the source
    image/height       int64   pixels
    image/width        int64   pixels

Its `.idx` holds an entry of `INDEX_DTYPE` for each record in order (offset and length of the payload, label,
weight; little-endian), so that any example is one positioned read, and sampling by class or weight needs none.
Reading payloads needs no TensorFlow; writing and parsing import it when called.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import struct
import types
from collections.abc import Iterable, Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from trainer.data.manifest import Manifest, Shard, Split, SplitName
from trainer.errors import DataError

Tensor = Any

_ENCODED, _LABEL, _FORMAT, _FILENAME = "image/encoded", "image/class/label", "image/format", "image/filename"
_HEIGHT, _WIDTH, _WEIGHT = "image/height", "image/width", "image/weight"

# TFRecord framing: uint64 length, uint32 masked CRC-32C of it, the payload, uint32 masked CRC-32C of the payload
# (tensorflow/core/lib/io/record_writer.h).
_HEADER_BYTES, _FOOTER_BYTES = 12, 4
# One entry of an index. `label` is -1 for an example with several labels.
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
        """The serialized `tf.train.Example`; the same bytes for the same example."""
        import tensorflow as tf

        def of_bytes(value: bytes) -> Any:
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

        def of_ints(*values: int) -> Any:
            return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

        features = {
            _ENCODED: of_bytes(self.encoded),
            _LABEL: of_ints(*self.labels),
            _FORMAT: of_bytes(self.format.encode()),
            # A POSIX file name is bytes; what is not UTF-8 in it comes as surrogates and goes back to its bytes.
            _FILENAME: of_bytes(os.fsencode(self.filename)),
            _HEIGHT: of_ints(self.height),
            _WIDTH: of_ints(self.width),
        }
        if self.weight != 1.0:
            features[_WEIGHT] = tf.train.Feature(float_list=tf.train.FloatList(value=[self.weight]))
        example = tf.train.Example(features=tf.train.Features(feature=features))
        # The features are a protobuf map, whose order is otherwise free.
        payload: bytes = example.SerializeToString(deterministic=True)
        return payload

    @classmethod
    def from_payload(cls, payload: bytes) -> "Example":
        """Parses what `to_payload` gave."""
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
    """Writes one shard and its index, a record at a time; after the `with` block, `shard` describes them.

    Memory stays flat whatever the number of records. Raises OSError where the disk is full. A block left by an
    exception leaves no `shard`, and the files half written: write into a directory of `atomic.new_directory`.
    """

    def __init__(self, directory: pathlib.Path, stem: str) -> None:
        """`stem` such as "train-00000-of-00008" names `<stem>.tfrecord` and `<stem>.idx`."""
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
        """Appends one record."""
        assert self._index is not None, "write inside the with block"
        payload = example.to_payload()
        with _as_os_error():
            self._records.write(payload)
        offset = self._next_offset + _HEADER_BYTES
        self._index.write(_INDEX_ENTRY.pack(offset, len(payload), example.label, example.weight))
        self._next_offset += _HEADER_BYTES + len(payload) + _FOOTER_BYTES
        self._num_examples += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        assert self._index is not None, "entered"
        with self._index, _as_os_error():
            self._records.close()
        if error is None:
            self._shard = Shard(
                file_name=self._path.name,
                index_file_name=self._index_path.name,
                num_examples=self._num_examples,
                num_bytes=self._path.stat().st_size,
                sha256=_sha256_of(self._path),
                index_sha256=_sha256_of(self._index_path),
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


class SplitReader:
    """Random access to the payloads of one split, by positioned reads; safe to share between threads.

    Opens every shard and maps every index once. The checksums of records are not read again here: a launch
    calls `verify_shards`, which is stronger, before the first step.
    """

    def __init__(self, dataset_dir: pathlib.Path, manifest: Manifest, split: SplitName) -> None:
        """Raises DataError where the split, a shard or an index is missing, or is not of the recorded size."""
        self._descriptors: list[int] = []
        self._indexes: list[npt.NDArray[Any]] = []
        self._shards = _split_of(dataset_dir, manifest, split).shards
        self._paths = [dataset_dir / shard.file_name for shard in self._shards]
        for shard, path in zip(self._shards, self._paths, strict=True):
            index_path = dataset_dir / shard.index_file_name
            _check_size(path, shard.num_bytes)
            _check_size(index_path, shard.num_examples * _INDEX_ENTRY.size)
            self._descriptors.append(os.open(path, os.O_RDONLY))
            self._indexes.append(_map_index(index_path, shard.num_examples))
        # Example i lies in the shard whose [start, next start) holds i.
        self._starts = np.cumsum([0, *(shard.num_examples for shard in self._shards)], dtype=np.int64)
        self.num_examples = int(self._starts[-1])

    def read(self, indices: npt.NDArray[np.int64]) -> list[bytes]:
        """The payloads of the examples `indices` ([n], each in [0, num_examples)), in that order.

        Raises:
            DataError: a shard ends before the record does; it is named.
            IndexError: an index is out of range.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= self.num_examples):
            raise IndexError(f"indices from {indices.min()} to {indices.max()} of {self.num_examples} examples")
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        return [
            self._read_one(shard, row)
            for shard, row in zip(shards.tolist(), (indices - self._starts[shards]).tolist(), strict=True)
        ]

    def _read_one(self, shard: int, row: int) -> bytes:
        offset, length, _, _ = self._indexes[shard][row].tolist()
        payload = os.pread(self._descriptors[shard], length, offset)
        if len(payload) != length:
            raise DataError(
                f"the shard {self._paths[shard]} is truncated: record {row} has {len(payload)} of its {length} bytes; "
                "copy the shard again, or prepare the dataset again"
            )
        return payload

    def labels(self) -> npt.NDArray[np.int32]:
        """The label of every example, [num_examples], or `SEVERAL_LABELS`; from the indexes alone."""
        return np.concatenate([index["label"] for index in self._indexes])

    def weights(self) -> npt.NDArray[np.float32]:
        """The weight of every example, [num_examples], each above 0; from the indexes alone."""
        return np.concatenate([index["weight"] for index in self._indexes])

    def close(self) -> None:
        """Closes the shards; reading afterwards is an error."""
        while self._descriptors:
            os.close(self._descriptors.pop())
        self._indexes.clear()

    def __enter__(self) -> "SplitReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def parse_examples(payloads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Parses serialized examples with one label each, a string tensor [n], in the graph.

    Returns encoded images [n] string, labels [n] int64, weights [n] float32.
    """
    import tensorflow as tf

    spec = {
        _ENCODED: tf.io.FixedLenFeature([], tf.string),
        _LABEL: tf.io.FixedLenFeature([], tf.int64),
        _WEIGHT: tf.io.FixedLenFeature([], tf.float32, default_value=1.0),
    }
    features = tf.io.parse_example(payloads, spec)
    return features[_ENCODED], features[_LABEL], features[_WEIGHT]


def iterate_examples(dataset_dir: pathlib.Path, manifest: Manifest, split: SplitName) -> Iterator[Example]:
    """Every example of a split, in the order of the shards. Raises DataError as `SplitReader` does."""
    with SplitReader(dataset_dir, manifest, split) as reader:
        for index in range(reader.num_examples):
            yield Example.from_payload(reader.read(np.array([index]))[0])


def iterate_split(
    dataset_dir: pathlib.Path, manifest: Manifest, split: SplitName, batch_size: int
) -> Iterator[tuple[list[bytes], npt.NDArray[np.int64]]]:
    """Batches of (encoded images, labels [n] int64) in the order of the shards; the last may be smaller."""
    encoded: list[bytes] = []
    labels: list[int] = []
    for example in iterate_examples(dataset_dir, manifest, split):
        encoded.append(example.encoded)
        labels.append(example.label)
        if len(encoded) == batch_size:
            yield encoded, np.array(labels, np.int64)
            encoded, labels = [], []
    if encoded:
        yield encoded, np.array(labels, np.int64)


def verify_shards(dataset_dir: pathlib.Path, manifest: Manifest, splits: Iterable[SplitName]) -> None:
    """Compares every shard and index of `splits` with the SHA-256 that the manifest holds for it.

    Raises:
        DataError: a split is not in the manifest, or a file is missing, truncated or changed; it is named.
    """
    for split in splits:
        for shard in _split_of(dataset_dir, manifest, split).shards:
            path, index_path = dataset_dir / shard.file_name, dataset_dir / shard.index_file_name
            _check_size(path, shard.num_bytes)
            _check_size(index_path, shard.num_examples * _INDEX_ENTRY.size)
            _check_sha256(path, shard.sha256)
            _check_sha256(index_path, shard.index_sha256)


def _split_of(dataset_dir: pathlib.Path, manifest: Manifest, split: SplitName) -> Split:
    if split not in manifest.splits:
        known = ", ".join(manifest.splits)
        raise DataError(f"the dataset {dataset_dir} has no split {split!r}; it has {known}")
    return manifest.splits[split]


def _check_size(path: pathlib.Path, num_bytes: int) -> None:
    try:
        found = path.stat().st_size
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


def _check_sha256(path: pathlib.Path, expected: str) -> None:
    found = _sha256_of(path)
    if found != expected:
        raise DataError(
            f"{path} fails its checksum: SHA-256 {found[:12]}... where the manifest says {expected[:12]}...; "
            "copy it again, or prepare the dataset again"
        )


def _sha256_of(path: pathlib.Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _map_index(path: pathlib.Path, num_examples: int) -> npt.NDArray[Any]:
    if num_examples == 0:  # an empty file cannot be mapped
        return np.zeros([0], INDEX_DTYPE)
    return np.memmap(path, INDEX_DTYPE, mode="r", shape=(num_examples,))
