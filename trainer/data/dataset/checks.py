"""Check a dataset when it is opened: the sizes of the shards and the SHA-256 of the small indexes.

The shards are not read: each record is checked when it is used (`SplitReader.read`), so a start takes the same time
however large the dataset is. `verify.py` reads everything.
"""

import concurrent.futures
from collections.abc import Iterable, Sequence
from typing import Final

from trainer.data.dataset.index import ShardIndex
from trainer.data.dataset.manifest import Manifest, Shard, SplitName
from trainer.data.dataset.records import check_size, split_of
from trainer.data.dataset.storage import DatasetPath

# An object store answers slowly, and any number of requests at a time.
_NUM_PARALLEL: Final = 32


def check_splits(dataset_dir: DatasetPath, manifest: Manifest, splits: Iterable[SplitName]) -> None:
    """Check the sizes of the shards and the checksums of the indexes of `splits`.

    Raises:
        DataError: a split is not in the manifest, or a file is missing, truncated or changed; the message names it.
    """
    shards = [shard for split in splits for shard in split_of(dataset_dir, manifest, split).shards]
    for index in open_shards(dataset_dir, shards):
        index.close()


def open_shards(dataset_dir: DatasetPath, shards: Sequence[Shard]) -> list[ShardIndex]:
    """Check `shards` as `check_splits` does, and return their open indexes."""
    opened: list[ShardIndex] = []
    with concurrent.futures.ThreadPoolExecutor(_NUM_PARALLEL, "open") as pool:
        # In order, so that the first of several damaged shards is named.
        found = [pool.submit(_open_shard, dataset_dir, shard) for shard in shards]
        try:
            for opening in found:
                opened.append(opening.result())
        except BaseException:
            for opening in found:
                if not opening.cancel() and not opening.exception():
                    opening.result().close()
            raise
    return opened


def _open_shard(dataset_dir: DatasetPath, shard: Shard) -> ShardIndex:
    check_size(dataset_dir / shard.file_name, shard.num_bytes)
    return ShardIndex(dataset_dir, shard)
