"""What every source gives: candidates, cheap to hold a million of, and the bytes of each when asked."""

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

# A record is one protocol buffer, which must stay under 2 GiB; an image file of this size is something else.
MAX_FILE_BYTES = 2**29


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One labelled image of a source, by name; nothing was read of it yet.

    filename: relative to the source, "/" between folders, unique in the source.
    class_names: its classes, at least one, without repetition.
    split: where the source itself says to which split the image belongs; None leaves it to `prepare`.
    weight: above 0; of the example in the loss, or in weighted sampling.
    group: what must not be divided between splits (a patient, a camera, a burst); None is a group of its own.
    locator: where the source finds the bytes, if not by the name; means something to the source alone.
    """

    filename: str
    class_names: tuple[str, ...]
    split: SplitName | None = None
    weight: float = 1.0
    group: str | None = None
    locator: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What the user says about a source besides its name.

    group_column: the column of a listing that names what must not be divided between splits.
    sha256: of an archive, in hexadecimal; what is given by URL must have one, here or in the catalogue.
    exclude: classes that are left out, and folders that are neither classes nor splits.
    """

    group_column: str | None = None
    sha256: str | None = None
    exclude: tuple[str, ...] = ()


class Source(abc.ABC):
    """A collection of labelled images, called `name` for short."""

    name: str

    @property
    def class_names(self) -> Sequence[str] | None:
        """The classes in the order of their labels; None for those of the candidates, sorted."""
        return None

    @property
    def remarks(self) -> Sequence[str]:
        """What a person should know of how the source is read, a sentence each."""
        return ()

    @property
    def passed_over(self) -> PassedOver:
        """What the last call of `candidates`, once it is through, has found and not given."""
        return PassedOver()

    def stage(self, workspace: pathlib.Path, progress: ShowProgress) -> None:  # noqa: B027  nothing, for most
        """Fetches or unpacks what the source needs into the folder `workspace`, before anything else is asked of it.

        The folder outlives a killed `prepare`: what lies there whole is used again. Nothing to do for most sources.
        Raises DataError where it cannot be had, or is not what it should be.
        """

    @abc.abstractmethod
    def candidates(self) -> Iterator[Candidate]:
        """Every candidate once, in any order. Raises DataError where the source is not of the right form."""

    @abc.abstractmethod
    def read(self, candidate: Candidate) -> bytes:
        """The encoded image; called from many threads.

        Raises OSError, which makes the candidate a bad file, or DataError where the whole source is not to be trusted.
        """


class FileSource(Source):
    """A source whose candidates are files below (or, by absolute names, beside) the folder `base`."""

    base: str

    def path_of(self, candidate: Candidate) -> str:
        return os.path.join(self.base, candidate.filename)  # a million times, and a Path is slow to make

    def read(self, candidate: Candidate) -> bytes:
        # Without Python's file objects, which take longer than a small file. Opening a named pipe would wait for ever,
        # if not for O_NONBLOCK.
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
