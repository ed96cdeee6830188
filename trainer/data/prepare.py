"""Any source of labelled images to a prepared dataset: checked, split, shuffled, sharded.

Two passes over the images: the first decodes each one, so that the splits are cut from what is readable; the second
writes the records in their final order. Between the passes a few hundred bytes are held of each image, never its
content. The same source, seed and options give the same bytes, whatever the number of workers.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import math
import os
import pathlib
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from trainer.data import image_check, records, splits
from trainer.data.manifest import BadFile, Manifest, Shard, Split, SplitName
from trainer.data.new_dataset import check_target, new_dataset
from trainer.data.sources import Candidate, Source, open_source
from trainer.errors import DataError

# A reader holds two open files a shard; so many shards of two splits stay under the usual limit of 1,024.
MAX_SHARDS = 200
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What decides the content of a dataset besides its source; only `num_workers` does not.

    validation_fraction, test_fraction: of the images of each class, each at least 0 and together below 1. A split
        that the source has of its own is taken as it is.
    shard_bytes: a shard holds about so much (more, where there would be over `MAX_SHARDS`).
    max_bad_fraction: a larger share of unusable files is an error.
    num_workers: threads; 0 for one a core.
    """

    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0
    shard_bytes: int = 128 * 2**20
    max_bad_fraction: float = 0.01
    num_workers: int = 0

    def __post_init__(self) -> None:
        for flag, value in (("--val", self.validation_fraction), ("--test", self.test_fraction)):
            if not 0 <= value < 1:
                raise DataError(f"{flag} is {value}; expected a share of the images, from 0 to below 1, such as 0.1")
        if self.validation_fraction + self.test_fraction >= 1:
            raise DataError(
                f"--val {self.validation_fraction} and --test {self.test_fraction} leave nothing to train on; "
                "give shares that add up to less than 1"
            )
        if not 0 <= self.max_bad_fraction <= 1:
            raise DataError(f"--max-bad-fraction is {self.max_bad_fraction}; expected a share from 0 to 1")
        if self.shard_bytes < 1 or self.num_workers < 0:
            raise DataError(
                f"{self.shard_bytes} bytes a shard and {self.num_workers} workers; expected at least 1, and 0 or more"
            )

    @property
    def fractions(self) -> dict[SplitName, float]:
        return {"validation": self.validation_fraction, "test": self.test_fraction}


class Advances(Protocol):
    """Counts what is done."""

    def advance(self, amount: int = 1) -> None: ...


# Called with what is being done and how many parts it has; `trainer.progress.task_progress` is one.
ShowProgress = Callable[[str, int], contextlib.AbstractContextManager[Advances]]


class _Silence:
    def advance(self, amount: int = 1) -> None:
        pass


def show_nothing(description: str, total: int) -> contextlib.AbstractContextManager[Advances]:
    return contextlib.nullcontext(_Silence())


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Checked:
    """A readable image, without its content."""

    candidate: Candidate
    digest: bytes
    num_bytes: int
    format: str
    height: int
    width: int
    change: str | None

    @property
    def filename(self) -> str:
        return self.candidate.filename

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.candidate.class_names

    @property
    def split(self) -> SplitName | None:
        return self.candidate.split


def prepare_dataset(
    source: str,
    out: pathlib.Path,
    *,
    options: PrepareOptions | None = None,
    overwrite: bool = False,
    progress: ShowProgress = show_nothing,
) -> Manifest:
    """Prepares `source` (see `sources.open_source`) as the dataset `out` and returns its manifest.

    Raises:
        DataError: the source is unknown, empty, of one class, or has a class with fewer readable images than
            splits; too many of its files cannot be used; or `out` is taken.
        TrainerError: `out` cannot be written.
    """
    options = options or PrepareOptions()
    check_target(out, source, overwrite=overwrite)
    opened = open_source(source)
    candidates = sorted(opened.candidates(), key=lambda candidate: candidate.filename)
    class_names = _class_names_of(opened, candidates)
    splits.check_class_counts(candidates, class_names, options.fractions)
    with _pillow_remarks_ignored():
        checked, bad_files = _check_images(opened, candidates, options, progress)
        _check_bad_fraction(bad_files, len(candidates), options.max_bad_fraction)
        splits.check_class_counts(checked, class_names, options.fractions)
        with new_dataset(out) as directory:
            writer = _Writer(opened, directory, class_names, options)
            manifest = Manifest(
                name=opened.name,
                source=source,
                class_names=class_names,
                seed=options.seed,
                splits=writer.write(checked, progress),
                bad_files=bad_files,
                num_reencoded=dict(sorted(collections.Counter(c.change for c in checked if c.change).items())),
            )
            manifest.save(directory)
    return manifest


@contextlib.contextmanager
def _pillow_remarks_ignored() -> Iterator[None]:
    """Its warnings on sloppy files (EXIF, MPO) say nothing that the check does not find out.

    Entered around all threads, since the filters are those of the process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _class_names_of(source: Source, candidates: Sequence[Candidate]) -> list[str]:
    names = list(source.class_names or sorted({candidate.class_names[0] for candidate in candidates}))
    for name in names:
        # One name a line in labels.txt; surrogates are what Python makes of file names that are not UTF-8.
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise DataError(f"the class name {name!r} has a character that is not text; rename the class")
    return names


def _check_images(
    source: Source, candidates: Sequence[Candidate], options: PrepareOptions, progress: ShowProgress
) -> tuple[list[_Checked], list[BadFile]]:
    """What is readable, and what is not, in the order of `candidates`."""
    checked: list[_Checked] = []
    bad_files: list[BadFile] = []
    with progress("checking", len(candidates)) as shown:
        for result in _map_in_order(lambda candidate: _check_one(source, candidate), candidates, options.num_workers):
            if isinstance(result, BadFile):
                bad_files.append(result)
            else:
                checked.append(result)
            shown.advance()
    return checked, bad_files


def _check_one(source: Source, candidate: Candidate) -> _Checked | BadFile:
    try:
        content = source.read(candidate)
    except OSError as e:
        reason = "missing" if isinstance(e, FileNotFoundError) else f"cannot be read: {e.strerror or e}"
        return BadFile(path=_printable(candidate.filename), reason=reason)
    image = image_check.check_image(content)
    if isinstance(image, image_check.UnreadableImage):
        return BadFile(path=_printable(candidate.filename), reason=image.reason)
    return _Checked(
        candidate=candidate,
        digest=_digest(content),
        num_bytes=len(image.encoded),
        format=image.format,
        height=image.height,
        width=image.width,
        change=image.change,
    )


def _check_bad_fraction(bad_files: Sequence[BadFile], num_candidates: int, max_bad_fraction: float) -> None:
    if len(bad_files) <= max_bad_fraction * num_candidates:
        return
    first = ", ".join(f"{bad.path} ({bad.reason})" for bad in bad_files[:3])
    more = f" and {len(bad_files) - 3:,} more" if len(bad_files) > 3 else ""
    raise DataError(
        f"{len(bad_files):,} of {num_candidates:,} files ({len(bad_files) / num_candidates:.1%}) cannot be used, more "
        f"than --max-bad-fraction {max_bad_fraction:g}: {first}{more}; repair or remove them, or raise "
        "--max-bad-fraction"
    )


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Writes splits of `source` into `directory`."""

    source: Source
    directory: pathlib.Path
    class_names: Sequence[str]
    options: PrepareOptions

    def write(self, images: Sequence[_Checked], progress: ShowProgress) -> dict[SplitName, Split]:
        """Chooses the splits of `images` and writes them."""
        chosen = splits.choose_splits(images, self.options.fractions, self.options.seed)
        with progress("writing", len(images)) as shown:
            return {
                split: self._write_split(split, [images[position] for position in positions], shown)
                for split, positions in chosen.items()
            }

    def _write_split(self, split: SplitName, images: Sequence[_Checked], shown: Advances) -> Split:
        """Writes the records of `images` in their order, divided evenly over the shards."""
        num_bytes = sum(image.num_bytes for image in images)
        num_shards = min(math.ceil(num_bytes / self.options.shard_bytes), MAX_SHARDS, len(images))
        bounds = [len(images) * i // num_shards for i in range(num_shards + 1)]
        labels = {class_name: label for label, class_name in enumerate(self.class_names)}
        examples = _map_in_order(lambda image: self._load(image, labels), images, self.options.num_workers)
        counts = collections.Counter(image.class_names[0] for image in images)
        shards: list[Shard] = []
        for i in range(num_shards):
            with records.ShardWriter(self.directory, f"{split}-{i:05}-of-{num_shards:05}") as writer:
                for example in itertools.islice(examples, bounds[i + 1] - bounds[i]):
                    writer.write(example)
                    shown.advance()
            shards.append(writer.shard)
        return Split(num_examples=len(images), class_counts=[counts[name] for name in self.class_names], shards=shards)

    def _load(self, image: _Checked, labels: Mapping[str, int]) -> records.Example:
        try:
            content = self.source.read(image.candidate)
        except OSError:
            content = b""
        if _digest(content) != image.digest:
            raise DataError(
                f"{_printable(image.filename)} changed while the dataset was being prepared; "
                "start again when nobody writes to the source"
            )
        if image.change is not None:
            checked = image_check.check_image(content)
            assert isinstance(checked, image_check.ReadableImage), "the same bytes were readable before"
            content = checked.encoded
        return records.Example(
            encoded=content,
            labels=(labels[image.class_names[0]],),
            format=image.format,
            filename=image.filename,
            height=image.height,
            width=image.width,
        )


def _map_in_order(function: Callable[[_T], _R], items: Iterable[_T], num_workers: int) -> Iterator[_R]:
    """`map` on threads: Pillow and TensorFlow decode outside the interpreter's lock. A few results are in flight."""
    num_workers = num_workers or os.cpu_count() or 1
    pending: collections.deque[concurrent.futures.Future[_R]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 4 * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # an error or Ctrl-C waits for what is running, not for what is queued
            pool.shutdown(wait=False, cancel_futures=True)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _printable(filename: str) -> str:
    """For messages and JSON, where the bytes of a name that is not UTF-8 are written as \\xNN."""
    return os.fsencode(filename).decode("utf-8", "backslashreplace")
