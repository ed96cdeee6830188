"""What every source gives: candidates, cheap to hold a million of, and the bytes of each when asked."""

import abc
import dataclasses
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Protocol

from trainer.data.manifest import SplitName

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


class Source(Protocol):
    """A collection of labelled images."""

    @property
    def name(self) -> str:
        """A short name for the dataset."""

    @property
    def class_names(self) -> Sequence[str] | None:
        """The classes in the order of their labels; None for those of the candidates, sorted."""

    def candidates(self) -> Iterator[Candidate]:
        """Every candidate once, in any order. Raises DataError where the source is not of the right form."""

    def read(self, candidate: Candidate) -> bytes:
        """The encoded image; called from many threads. Raises OSError, which makes the candidate a bad file."""


class FileSource(abc.ABC):
    """A source whose candidates are files below (or, by absolute names, beside) the folder `base`."""

    base: str

    @abc.abstractmethod
    def candidates(self) -> Iterator[Candidate]: ...

    def path_of(self, candidate: Candidate) -> str:
        return os.path.join(self.base, candidate.filename)  # a million times, and a Path is slow to make

    def read(self, candidate: Candidate) -> bytes:
        path = self.path_of(candidate)
        # Looked at before it is opened: opening a named pipe waits for ever.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, over the limit of {MAX_FILE_BYTES:,}")
        with open(path, "rb") as f:
            return f.read()
