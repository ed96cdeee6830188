"""A small dataset of made-up records, for tests of shards and of their readers."""

import pathlib

from trainer.data.dataset.manifest import Manifest, Split
from trainer.data.dataset.records import Example, ShardWriter

SHARD_SIZES = (3, 1, 4)
NUM_EXAMPLES = sum(SHARD_SIZES)


def example(index: int) -> Example:
    return Example(
        encoded=b"image %d" % index * (index + 1),
        labels=(index % 3,),
        format="png",
        filename=f"katze/straße {index}.png",
        height=index,
        width=7,
    )


def write_dataset(directory: pathlib.Path, *sizes: int, make=example) -> Manifest:
    """Writes `make(0)`, `make(1)`... as the split train, in shards of `sizes`."""
    directory.mkdir(exist_ok=True)
    shards, index = [], 0
    for number, size in enumerate(sizes or SHARD_SIZES):
        with ShardWriter(directory, f"train-{number:05}-of-{len(sizes or SHARD_SIZES):05}") as writer:
            for _ in range(size):
                writer.write(make(index))
                index += 1
        shards.append(writer.shard)
    split = Split(num_examples=index, class_counts=[index, 0, 0], shards=shards)
    manifest = Manifest(name="n", source="s", class_names=["a", "b", "c"], seed=0, splits={"train": split})
    manifest.save(directory)
    return manifest
