"""The second stage: read and decode every candidate once."""

import contextlib
import dataclasses
import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.console.task_progress import Advances, ShowProgress
from trainer.data.dataset.manifest import DeepSamples
from trainer.data.preparation.deep_samples import FULL_BITS, fewer_bits, usual_bits
from trainer.data.preparation.file_kinds import find_left_behind
from trainer.data.preparation.images import image_check
from trainer.data.preparation.options import PrepareOptions
from trainer.data.preparation.ordered_threads import map_chunks_in_order, num_workers_of
from trainer.data.preparation.state import DEEP_SAMPLES, IGNORED, State
from trainer.data.sources import Candidate, Source

# How many files (fewer if there are not many) or bytes a thread reads before it decodes them together.
_MIN_CHUNK_FILES, _MAX_CHUNK_FILES = 8, 128
_CHUNKS_PER_WORKER = 16
_CHUNK_BYTES = 2**23
# How often results are saved; a kill loses no more.
_SAVE_EVERY_SECS = 0.25

_Row = tuple[Any, ...]


def check_candidates(state: State, source: Source, options: PrepareOptions, progress: ShowProgress) -> None:
    """Insert a row into `checks` for every candidate that has none."""
    num_done = state.scalar("SELECT count(*) FROM checks")
    num_candidates = state.scalar("SELECT count(*) FROM candidates")
    num_workers = num_workers_of(options.num_workers)
    chunk_files = num_candidates // (_CHUNKS_PER_WORKER * num_workers)
    chunks = _chunks_to_do(state, min(max(chunk_files, _MIN_CHUNK_FILES), _MAX_CHUNK_FILES))
    checker = _Checker(source, options.max_side_px, options.sample_bits)
    with progress("checking", num_candidates) as shown:
        shown.advance(num_done)
        _check_chunks(state, checker, chunks, num_workers, shown)


def resolve_sample_bits(state: State, source: Source, options: PrepareOptions, progress: ShowProgress) -> None:
    """Decide how many bits are used in 16-bit files that do not say so, and check these files again.

    It needs the checks of all images. If killed, it starts over with the same result.
    """
    num_files, highest = state.connection.execute(
        "SELECT count(*), max(highest_sample) FROM checks WHERE highest_sample IS NOT NULL"
    ).fetchone()
    if not num_files:
        return
    bits = options.sample_bits or usual_bits(highest)
    if options.sample_bits is None and bits != FULL_BITS:
        checker = _Checker(source, options.max_side_px, bits)
        chunks = _chunks_of_deep_samples(state)
        with progress(f"reading {bits} bits", num_files) as shown:
            _check_chunks(state, checker, chunks, num_workers_of(options.num_workers), shown)
    decided = DeepSamples(
        num_files=num_files,
        highest=highest,
        num_darker=state.scalar("SELECT count(*) FROM checks WHERE highest_sample < ?", 2 ** fewer_bits(bits)),
        bits=bits,
        is_given=options.sample_bits is not None,
    )
    state.set_fact(DEEP_SAMPLES, decided.model_dump())


def sample_bits_of(state: State, options: PrepareOptions) -> int | None:
    """Return how many bits are used in 16-bit files that do not say so, as decided by `resolve_sample_bits`."""
    found = state.fact(DEEP_SAMPLES)
    return options.sample_bits if found is None else int(found["bits"])


def digest_of(content: bytes) -> bytes:
    """Return a digest, to notice an image that changes between the two passes."""
    return hashlib.sha256(content).digest()[:16]  # processors have instructions for SHA-256


def _check_chunks(
    state: State, checker: "_Checker", chunks: Iterator[list[tuple[int, Candidate]]], num_workers: int, shown: Advances
) -> None:
    with (
        contextlib.closing(map_chunks_in_order(checker.check, chunks, num_workers)) as found,
        contextlib.closing(_Saver(state)) as saver,  # saves on Ctrl-C too
    ):
        for rows in found:
            saver.add(rows)
            shown.advance(len(rows))


def _chunks_to_do(state: State, chunk_files: int) -> Iterator[list[tuple[int, Candidate]]]:
    last_id = state.scalar("SELECT coalesce(max(id), -1) FROM checks")
    while chunk := state.candidates_after(last_id, chunk_files):
        yield chunk
        last_id = chunk[-1][0]


def _chunks_of_deep_samples(state: State) -> Iterator[list[tuple[int, Candidate]]]:
    last_id = -1
    while chunk := state.candidates_after(last_id, _MIN_CHUNK_FILES, "highest_sample IS NOT NULL"):
        yield chunk
        last_id = chunk[-1][0]


@dataclasses.dataclass(frozen=True)
class _Checker:
    source: Source
    max_side_px: int | None
    sample_bits: int | None

    def check(self, chunk: Sequence[tuple[int, Candidate]]) -> list[_Row]:
        """Return the rows of `checks` for a chunk, in order."""
        rows: list[_Row] = []
        read: list[tuple[int, str, bytes]] = []
        num_bytes = 0
        for number, candidate in chunk:
            try:
                content = self.source.read(candidate)
            except OSError as e:
                rows.append(_bad_row(number, _reason_of(e, candidate)))
                continue
            read.append((number, candidate.filename, content))
            num_bytes += len(content)
            if num_bytes >= _CHUNK_BYTES:
                rows += self._check_read(read)
                read, num_bytes = [], 0
        rows += self._check_read(read)
        return sorted(rows)

    def _check_read(self, read: Sequence[tuple[int, str, bytes]]) -> list[_Row]:
        images = image_check.check_images(
            [content for _, _, content in read], max_side_px=self.max_side_px, sample_bits=self.sample_bits
        )
        return [
            _bad_row(number, _reason_or_ignored(image.reason, filename, content))
            if isinstance(image, image_check.UnreadableImage)
            else (
                number,
                digest_of(content),
                len(image.encoded),
                image.format,
                image.height,
                image.width,
                image.change,
                None,
                image.highest_sample,
            )
            for (number, filename, content), image in zip(read, images, strict=True)
        ]


def _reason_of(error: OSError, candidate: Candidate) -> str:
    if not isinstance(error, FileNotFoundError):
        return f"cannot be read: {error.strerror or error}"
    if re.match(r"[A-Za-z]:[\\/]|\\\\", candidate.filename):
        return "missing: a Windows path, which does not exist here; write it relative to the listing"
    return "missing"


def _reason_or_ignored(reason: str, filename: str, content: bytes) -> str:
    if not reason.startswith(image_check.NOT_AN_IMAGE):
        return reason
    left_behind = find_left_behind(filename, content)
    return reason if left_behind is None else f"{IGNORED}{left_behind}"


def _bad_row(number: int, reason: str) -> _Row:
    return (number, None, None, None, None, None, None, reason, None)


class _Saver:
    """A buffer that saves rows in few transactions, because each waits for the disk."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._rows: list[_Row] = []
        self._saved_at = time.monotonic()

    def add(self, rows: Sequence[_Row]) -> None:
        self._rows += rows
        if time.monotonic() - self._saved_at >= _SAVE_EVERY_SECS:
            self.close()

    def close(self) -> None:
        """Save the remaining rows."""
        rows, self._rows = self._rows, []
        with self._state.transaction():
            self._state.insert("checks", rows, replace=True)
        self._saved_at = time.monotonic()
