"""Copy a prepared dataset to an object store; the manifest is written last and commits it."""

import concurrent.futures
import pathlib
from typing import Final

from trainer.data.dataset.manifest import BAD_FILES_NAME, FILE_NAME, Manifest
from trainer.data.dataset.records import check_size
from trainer.data.dataset.storage import RemotePath, copy_file, num_bytes_of, remove_file
from trainer.errors import DataError, TrainerError

_NUM_PARALLEL_COPIES: Final = 8


def publish_dataset(dataset_dir: pathlib.Path, target: RemotePath, *, overwrite: bool = False) -> None:
    """Copy the prepared dataset `dataset_dir` to `target`.

    Readers see no dataset at `target` before its manifest, the commit file, is written last. Run it again after a kill.

    Raises:
        DataError: `dataset_dir` is not a prepared dataset or is damaged, `target` already holds one, or the store
            cannot be written.
        TrainerError: a file arrived incomplete.
    """
    manifest = Manifest.load(dataset_dir)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    for shard in shards:
        check_size(dataset_dir / shard.file_name, shard.num_bytes)
    if (target / FILE_NAME).exists():
        if not overwrite:
            raise DataError(f"{target} holds a prepared dataset already; give --overwrite, or another --out")
        # Until the end there is no dataset at `target`, rather than a mix of two.
        remove_file(target / FILE_NAME)
    names = [name for shard in shards for name in (shard.file_name, shard.index_file_name)]
    names += [name for name in (BAD_FILES_NAME,) if (dataset_dir / name).is_file()]
    with concurrent.futures.ThreadPoolExecutor(_NUM_PARALLEL_COPIES) as pool:
        for copied in [pool.submit(_copy, dataset_dir / name, target / name) for name in names]:
            copied.result()
    _copy(dataset_dir / FILE_NAME, target / FILE_NAME)


def _copy(source: pathlib.Path, target: RemotePath) -> None:
    copy_file(source, target)
    found, expected = num_bytes_of(target), num_bytes_of(source)
    if found != expected:
        raise TrainerError(f"{target} arrived with {found} of {expected} bytes; run the same command again")
