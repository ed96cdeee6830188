"""A cache of the decoded and resized images of a split, in memory or in a file on disk.

    CACHE_DIR/<split>-<size>px-<key>/   header.json   pixels.uint8: [num_examples, size, size, 3], in storage order

The key is a digest of everything that decides the pixels: the examples, the geometry, `preprocess.VERSION`, TensorFlow
and the kind of processor; a change of any of these makes a new cache. A directory gets its name once it is complete;
the processes of one machine wait for the one that fills it, and share it through the page cache.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import platform
from collections.abc import Callable, Iterator
from typing import IO, Any, Literal

import numpy as np
import tensorflow as tf

from trainer.console.task_progress import ShowProgress, show_nothing
from trainer.data.dataset.derived import HEADER, PIXELS, note_use
from trainer.data.dataset.manifest import Manifest, SplitName
from trainer.data.dataset.storage import DatasetPath
from trainer.data.decode import preprocess
from trainer.data.decode.geometry import Geometry
from trainer.data.input.pipeline import EvaluationStream, Pixels, Resources, open_split
from trainer.data.input.read_errors import as_data_errors
from trainer.distribute.topology import Topology
from trainer.errors import DataError
from trainer.system import atomic, in_use, lock

CacheLocation = Literal["off", "memory", "disk"]
WritePixels = Callable[[Callable[[Pixels], None]], None]
SCHEMA_VERSION = 1
_LOCK = ".lock"
_BATCH_SIZE = 64


def num_bytes(num_examples: int, geometry: Geometry) -> int:
    """Return the size of the decoded images of `num_examples` examples."""
    return num_examples * geometry.image_size_px**2 * 3


class DiskCache:
    """The cache of one split in `cache_dir`; it reads and writes nothing before `open_or_fill`."""

    def __init__(self, cache_dir: pathlib.Path, manifest: Manifest, split: SplitName, geometry: Geometry) -> None:
        size = geometry.image_size_px
        self._shape = (manifest.splits[split].num_examples, size, size, 3)
        self._header = _sign(
            {"schema_version": SCHEMA_VERSION, "split": split, **decisive_for_pixels(manifest, split, geometry)}
        )
        self._cache_dir = cache_dir
        self.path = cache_dir / f"{split}-{size}px-{self._header['sha256'][:16]}"

    def is_filled(self) -> bool:
        """Return whether the cache is complete: pixels of the right size under an intact header with this key."""
        try:
            header = json.loads((self.path / HEADER).read_text(encoding="utf-8"))
            size = (self.path / PIXELS).stat().st_size
        except (OSError, ValueError):
            return False
        return header == self._header and size == int(np.prod(self._shape, dtype=np.int64))

    def open_or_fill(self, write_pixels: WritePixels) -> Pixels:
        """Map the pixels, read-only, [num_examples, size, size, 3]; fill the cache first if it is not complete.

        Args:
            write_pixels: Called with a function that takes the images in storage order, a batch at a time.

        Raises:
            DataError: The disk is full or not writable.
        """
        if (pixels := self._open()) is not None:
            return pixels
        try:
            self._fill_once(write_pixels)
        except OSError as e:
            raise DataError(
                f"the cache {self.path} cannot be written: {e.strerror or e}; name another place with "
                "--set data.cache_dir=DIRECTORY, or use --set data.cache=off"
            ) from e
        if (pixels := self._open()) is None:
            raise DataError(f"the cache {self.path} was removed just after it was written; run the same command again")
        return pixels

    def _open(self) -> Pixels | None:
        """Map the pixels, in use until the array is no longer referenced; return None if they are not complete."""
        with contextlib.ExitStack() as unless_opened:
            try:
                descriptor = in_use.share(self.path / HEADER)
            except OSError:
                return None
            unless_opened.callback(os.close, descriptor)
            if not self.is_filled():
                return None
            mapped = np.memmap(self.path / PIXELS, np.uint8, mode="r", shape=self._shape)
            unless_opened.pop_all()
        note_use(self.path)
        in_use.release_with(mapped, descriptor)
        return np.asarray(mapped)

    def _fill_once(self, write_pixels: WritePixels) -> None:
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        with lock.hold(self._cache_dir / _LOCK):
            # Another process may have filled it while this one waited for the lock.
            if not self.is_filled():
                # The lock is held: temporary files are those of a process that was killed.
                atomic.remove_temporaries(self._cache_dir)
                self._fill(write_pixels)

    def _fill(self, write_pixels: WritePixels) -> None:
        with atomic.new_directory(self.path) as directory:
            with (directory / PIXELS).open("wb") as file:
                write_pixels(lambda images: _write(file, images))
            (directory / HEADER).write_text(json.dumps(self._header, indent=2) + "\n", encoding="utf-8")


def fill_memory(num_examples: int, geometry: Geometry, write_pixels: WritePixels) -> Pixels:
    """Return the pixels in memory; see `DiskCache.open_or_fill`."""
    pixels = np.empty([num_examples, geometry.image_size_px, geometry.image_size_px, 3], np.uint8)
    num_done = 0

    def copy(images: Pixels) -> None:
        nonlocal num_done
        pixels[num_done : num_done + len(images)] = images
        num_done += len(images)

    write_pixels(copy)
    assert num_done == num_examples, "every example was written"
    return pixels


def open_pixels(
    dataset_dir: DatasetPath,
    split: SplitName,
    geometry: Geometry,
    *,
    location: CacheLocation,
    cache_dir: pathlib.Path | None = None,
    num_threads: int = 0,
    progress: ShowProgress = show_nothing,
) -> Pixels | None:
    """Return the decoded images of a split in its order, [num_examples, size, size, 3]; None if `location` is "off".

    Images are decoded in parallel, in storage order, as in evaluation. A cache on disk, in `cache_dir`, is filled once.

    Raises:
        DataError: The split cannot be read, or the cache cannot be written.
    """
    if location == "off":
        return None
    manifest = Manifest.load(dataset_dir)
    num_examples = manifest.splits[split].num_examples

    def write_pixels(write: Callable[[Pixels], None]) -> None:
        with progress(f"decode {split} into the cache", num_examples) as shown:
            for images in decode_split(dataset_dir, split, geometry, num_threads=num_threads):
                write(images)
                shown.advance(len(images))

    if location == "memory":
        return fill_memory(num_examples, geometry, write_pixels)
    assert cache_dir is not None, "a cache on disk has a directory"
    return DiskCache(cache_dir, manifest, split, geometry).open_or_fill(write_pixels)


def decode_split(
    dataset_dir: DatasetPath, split: SplitName, geometry: Geometry, *, num_threads: int = 0
) -> Iterator[Pixels]:
    """Yield all images of a split as in evaluation, in batches [b, size, size, 3] in storage order."""
    with open_split(dataset_dir, split) as reader:
        stream = EvaluationStream(
            reader=reader,
            geometry=geometry,
            per_replica_batch_size=_BATCH_SIZE,
            topology=Topology(strategy="single", device="cpu", num_local_replicas=1),
            resources=Resources(num_threads=num_threads),
        )
        with as_data_errors():
            for batch in stream.dataset().as_numpy_iterator():
                yield batch.images[batch.weights > 0]


def decisive_for_pixels(manifest: Manifest, split: SplitName, geometry: Geometry) -> dict[str, Any]:
    """Return everything that decides the decoded images of a split."""
    return {
        "shards": [shard.sha256 for shard in manifest.splits[split].shards],
        "num_examples": manifest.splits[split].num_examples,
        "image_size_px": geometry.image_size_px,
        "resize": geometry.resize,
        "preprocess_version": preprocess.VERSION,
        "tensorflow": tf.__version__,
        "machine": platform.machine(),
    }


def _sign(header: dict[str, Any]) -> dict[str, Any]:
    """Return the header with its own digest, which is the key of the cache."""
    return {**header, "sha256": hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()}


def _write(file: IO[bytes], images: Pixels) -> None:
    file.write(np.ascontiguousarray(images).data)
