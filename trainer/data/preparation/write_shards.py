"""The last stage: write the chosen images into shards, in their order."""

import contextlib
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from trainer.console.task_progress import Advances, ShowProgress
from trainer.data.dataset import records
from trainer.data.dataset.manifest import SPLITS, Shard, SplitName
from trainer.data.preparation.check_images import digest_of, sample_bits_of
from trainer.data.preparation.images import image_check
from trainer.data.preparation.options import PrepareOptions
from trainer.data.preparation.ordered_threads import map_chunks_in_order, num_workers_of
from trainer.data.preparation.state import State, StoredImage, printable, to_bytes
from trainer.data.sources import Source
from trainer.errors import DataError

# A reader has two open files per shard; this many shards of two splits stay below the usual limit of 1,024.
MAX_SHARDS = 200
# How many images or bytes a thread reads at a time.
_CHUNK_IMAGES = 64
_CHUNK_BYTES = 2**22

# A payload, its label and its weight.
_Record = tuple[bytes, int, float]


class SourceChangedError(DataError):
    """Raised for an image that changed after it was checked."""


@dataclasses.dataclass(frozen=True, slots=True)
class _ShardPlan:
    """The positions of a split that go into a shard."""

    split: SplitName
    number: int
    stem: str
    start: int
    end: int


def write_shards(
    state: State, source: Source, directory: pathlib.Path, options: PrepareOptions, progress: ShowProgress
) -> dict[SplitName, list[Shard]]:
    """Write the shards that the table `shards` does not have yet into `directory`, and return all of them.

    Files of an unfinished shard are removed first.

    Raises:
        SourceChangedError: the bytes of an image differ from those that were checked.
    """
    plans = list(_plan(state, options.shard_bytes))
    finished = {
        (split, number): shard
        for split in SPLITS
        for number, shard in state.shards(split).items()
        if _is_there(directory, shard)
    }
    keep = {name for shard in finished.values() for name in (shard.file_name, shard.index_file_name)}
    for path in directory.iterdir():
        if path.name not in keep:
            path.unlink()
    loader = _Loader(source, options.max_side_px, sample_bits_of(state, options))
    num_workers = num_workers_of(options.num_workers)
    with progress("writing", sum(plan.end - plan.start for plan in plans)) as shown:
        for plan in plans:
            if (plan.split, plan.number) in finished:
                shown.advance(plan.end - plan.start)
                continue
            images = _chunks(state.images_at(plan.split, plan.start, plan.end))
            with contextlib.closing(map_chunks_in_order(loader.load, images, num_workers)) as loaded:
                shard = _write_shard(directory, plan.stem, loaded, shown)
            state.connection.execute(
                "INSERT OR REPLACE INTO shards VALUES (?, ?, ?)",
                (SPLITS.index(plan.split), plan.number, shard.model_dump_json()),
            )
            finished[plan.split, plan.number] = shard
    return {
        split: [finished[plan.split, plan.number] for plan in of_split]
        for split, of_split in itertools.groupby(plans, key=lambda plan: plan.split)
    }


def _plan(state: State, shard_bytes: int) -> Iterator[_ShardPlan]:
    """Divide the images of each split evenly over shards of about `shard_bytes`."""
    for index, num_images, num_bytes in state.connection.execute(
        "SELECT places.split, count(*), sum(num_bytes) FROM places JOIN checks ON checks.id = places.id "
        "GROUP BY places.split ORDER BY places.split"
    ).fetchall():
        num_shards = min(math.ceil(num_bytes / shard_bytes), MAX_SHARDS, num_images)
        bounds = [num_images * i // num_shards for i in range(num_shards + 1)]
        for number, (start, end) in enumerate(itertools.pairwise(bounds)):
            split = SPLITS[index]
            yield _ShardPlan(split, number, f"{split}-{number:05}-of-{num_shards:05}", start, end)


def _is_there(directory: pathlib.Path, shard: Shard) -> bool:
    try:
        return (directory / shard.file_name).stat().st_size == shard.num_bytes and (
            directory / shard.index_file_name
        ).is_file()
    except FileNotFoundError:
        return False


def _chunks(images: Iterable[StoredImage]) -> Iterator[list[StoredImage]]:
    chunk: list[StoredImage] = []
    num_bytes = 0
    for image in images:
        chunk.append(image)
        num_bytes += image.num_bytes
        if len(chunk) == _CHUNK_IMAGES or num_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def _write_shard(directory: pathlib.Path, stem: str, chunks: Iterator[list[_Record]], shown: Advances) -> Shard:
    with records.ShardWriter(directory, stem) as writer:
        for chunk in chunks:
            for payload, label, weight in chunk:
                writer.write_payload(payload, label=label, weight=weight)
            shown.advance(len(chunk))
    return writer.shard


@dataclasses.dataclass(frozen=True)
class _Loader:
    source: Source
    max_side_px: int | None
    sample_bits: int | None

    def load(self, images: Sequence[StoredImage]) -> list[_Record]:
        """Read images again, and re-encode those that the check found to need it."""
        return [self._load_one(image) for image in images]

    def _load_one(self, image: StoredImage) -> _Record:
        try:
            content = self.source.read(image.candidate)
        except OSError:
            content = b""
        if digest_of(content) != image.digest:
            raise SourceChangedError(
                f"{printable(to_bytes(image.candidate.filename))} changed while the dataset was being prepared; "
                "run the command again when nothing writes to the source"
            )
        if image.change is not None:
            checked = image_check.check_image(content, max_side_px=self.max_side_px, sample_bits=self.sample_bits)
            assert isinstance(checked, image_check.ReadableImage), "the same bytes were readable before"
            content = checked.encoded
        example = records.Example(
            encoded=content,
            labels=image.labels,
            format=image.format,
            filename=image.candidate.filename,
            height=image.height,
            width=image.width,
            weight=image.candidate.weight,
        )
        return example.to_payload(), example.label, example.weight
