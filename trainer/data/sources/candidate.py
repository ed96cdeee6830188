"""The interface of sources: candidates, small enough for millions, and the bytes of each on request."""

import abc
import dataclasses
import errno
import os
import pathlib
import stat
from collections.abc import Iterator, Sequence

from trainer.console.task_progress import ShowProgress
from trainer.data.dataset.manifest import SplitName
from trainer.data.sources.left_behind import PassedOver

# Limit of an image file. A record is one protocol buffer, which must stay below 2 GiB.
MAX_FILE_BYTES = 2**29


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A labelled image of a source that has not been read yet.

    filename: relative to the source, with "/" between folders, unique in the source.
    class_names: its classes, at least one, without duplicates.
    split: the split assigned by the source; None leaves it to `prepare`.
    weight: above 0; of the example in the loss, or in weighted sampling.
    group: images of a group (a patient, a camera, a burst) stay in one split; None for no group.
    locator: where the source finds the bytes, if not by name; opaque to others.
    """

    filename: str
    class_names: tuple[str, ...]
    split: SplitName | None = None
    weight: float = 1.0
    group: str | None = None
    locator: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options of a source.

    group_column: the column of a listing with groups that must not be divided between splits.
    sha256: of an archive, in hexadecimal; required for a URL that is not in the catalogue.
    exclude: classes to leave out, and folders that are neither classes nor splits.
    """

    group_column: str | None = None
    sha256: str | None = None
    exclude: tuple[str, ...] = ()


class Source(abc.ABC):
    """A collection of labelled images.

    name: a short name.
    passed_over: the files that the last complete iteration of `candidates` skipped.
    """

    name: str
    passed_over = PassedOver()

    @property
    def class_names(self) -> Sequence[str] | None:
        """The classes in the order of their labels; None for the sorted classes of the candidates."""
        return None

    @property
    def remarks(self) -> Sequence[str]:
        """Sentences for the user about how the source is read."""
        return ()

    def stage(self, workspace: pathlib.Path, progress: ShowProgress) -> None:  # noqa: B027  optional
        """Download or unpack what the source needs into the folder `workspace`; call it before all other methods.

        The folder outlives a killed `prepare`: complete files in it are reused. Most sources have nothing to do.

        Raises:
            DataError: the source is unavailable, or not as expected.
        """

    @abc.abstractmethod
    def candidates(self) -> Iterator[Candidate]:
        """Yield every candidate once, in any order; raise DataError if the source has the wrong form."""

    @abc.abstractmethod
    def read(self, candidate: Candidate) -> bytes:
        """Return the encoded image; called from many threads.

        Raises:
            OSError: the candidate is a bad file.
            DataError: the whole source cannot be trusted.
        """


class FileSource(Source):
    """A source whose candidates are files in the folder `base`, or files with absolute paths."""

    base: str

    def path_of(self, candidate: Candidate) -> str:
        return os.path.join(self.base, candidate.filename)  # called a million times, and Path is slow

    def read(self, candidate: Candidate) -> bytes:
        # Python's file objects take longer than reading a small file. Without O_NONBLOCK, opening a named pipe would
        # block forever.
        descriptor = os.open(self.path_of(candidate), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, over the limit of {MAX_FILE_BYTES:,}")
            parts = []
            while part := os.read(descriptor, status.st_size + 1):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(descriptor)
