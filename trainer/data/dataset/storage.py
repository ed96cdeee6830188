"""Storage of datasets: a local path, or an object store under a URL such as gs://bucket/dataset.

`parse_path` turns text into one of the two. Both have `/`, `name`, `exists`, `is_file`, `read_bytes` and `resolve`, so
code that only reads need not distinguish them. Object stores are read through `tf.io.gfile`; only they import
TensorFlow.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from trainer.errors import DataError
from trainer.system.paths import as_path

# Schemes that TensorFlow reads as installed. ram:// is its in-memory file system, which ends with the process.
REMOTE_SCHEMES: Final = ("gs", "ram")
_BLOCK_BYTES: Final = 4 * 1024 * 1024
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://")


@dataclasses.dataclass(frozen=True)
class RemotePath:
    """A file or folder in an object store, as an absolute URL."""

    url: str

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return self.url.rstrip("/").rpartition("/")[2]

    def resolve(self) -> "RemotePath":
        return self

    def exists(self) -> bool:
        import tensorflow as tf

        with _explained(self.url):
            return bool(tf.io.gfile.exists(self.url))

    def is_file(self) -> bool:
        import tensorflow as tf

        with _explained(self.url):
            return bool(tf.io.gfile.exists(self.url)) and not tf.io.gfile.isdir(self.url)

    def read_bytes(self) -> bytes:
        """Read the whole file; raise FileNotFoundError, or DataError if the store cannot be read."""
        return b"".join(read_blocks(self))


DatasetPath = pathlib.Path | RemotePath


def parse_path(text: str) -> DatasetPath:
    """Parse a local path, in which `~` is the home directory, or the URL of a readable object store.

    Raises:
        DataError: the URL has an unsupported scheme.
    """
    match = _URL.match(text)
    if match is None:
        return as_path(text)
    if match[1] in REMOTE_SCHEMES:
        return RemotePath(text.rstrip("/"))
    raise DataError(
        f"{text} is in a store that cannot be read directly; mount it as a folder (for s3:// with mountpoint-s3 or "
        "the CSI driver of the cluster) and give its path, or use a gs:// URL"
    )


def num_bytes_of(path: DatasetPath) -> int:
    """Return the size of a file; raise FileNotFoundError, or DataError if the store cannot be read."""
    if isinstance(path, pathlib.Path):
        return path.stat().st_size
    import tensorflow as tf

    with _explained(path.url):
        return int(tf.io.gfile.stat(path.url).length)


def read_blocks(path: DatasetPath) -> Iterator[bytes]:
    """Yield the blocks of a file; raise FileNotFoundError, or DataError if the store cannot be read."""
    if isinstance(path, pathlib.Path):
        with path.open("rb") as file:
            yield from iter(lambda: file.read(_BLOCK_BYTES), b"")
        return
    import tensorflow as tf

    with _explained(path.url), tf.io.gfile.GFile(path.url, "rb") as file:
        yield from iter(lambda: file.read(_BLOCK_BYTES), b"")


def copy_file(source: pathlib.Path, target: RemotePath) -> None:
    """Copy a file over `target`; raise DataError if the store cannot be written."""
    import tensorflow as tf

    with _explained(target.url):
        if tf.io.gfile.exists(target.url):
            tf.io.gfile.remove(target.url)  # ram:// would append to it
        tf.io.gfile.copy(str(source), target.url, overwrite=True)


def remove_file(path: RemotePath) -> None:
    """Remove a file; raise FileNotFoundError, or DataError if the store cannot be written."""
    import tensorflow as tf

    with _explained(path.url):
        tf.io.gfile.remove(path.url)


class OpenFiles(Protocol):
    """Open files for positioned reads from any number of threads."""

    # Reads of one file that are no further apart are faster as one read.
    max_gap_bytes: int

    def read(self, file: int, offset: int, num_bytes: int) -> bytes:
        """Read part of file number `file`; return fewer bytes at the end of the file."""

    def close(self) -> None: ...


class LocalFiles:
    """Positioned reads of local files, which release the GIL while they wait.

    Mapping the files would save a microsecond per 10 kB in the page cache, but a page fault would block all Python
    threads, and a truncated file would kill the process.
    """

    max_gap_bytes = 4096

    def __init__(self, paths: Sequence[pathlib.Path]) -> None:
        self._descriptors: list[int] = []
        self._paths = paths
        for path in paths:
            self._descriptors.append(os.open(path, os.O_RDONLY))

    def read(self, file: int, offset: int, num_bytes: int) -> bytes:
        try:
            return os.pread(self._descriptors[file], num_bytes, offset)
        except OSError as e:
            raise unreadable(self._paths[file], e) from e

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


class RemoteFiles:
    """Reads of files in an object store, one request each, so latency dominates."""

    max_gap_bytes = 256 * 1024
    num_parallel_reads = 32

    def __init__(self, paths: Sequence[RemotePath]) -> None:
        self._paths = paths

    def read(self, file: int, offset: int, num_bytes: int) -> bytes:
        import tensorflow as tf

        url = self._paths[file].url
        try:
            # A GFile has one position and is not thread-safe; opening one sends no request.
            with _explained(url), tf.io.gfile.GFile(url, "rb") as f:
                f.seek(offset)
                content: bytes = f.read(num_bytes)
                return content
        except EOFError:
            return b""
        except FileNotFoundError:
            raise DataError(f"{url} was removed since the start; copy it again, or prepare the dataset again") from None

    def close(self) -> None:
        pass


def derived_directory(dataset_dir: DatasetPath, suffix: str, *, setting: str | None) -> pathlib.Path:
    """Return the local directory of files derived from a dataset: `setting`, or the path of the dataset plus `suffix`.

    The files of a remote dataset are in the working directory.
    """
    if setting is not None:
        return pathlib.Path(setting).resolve()
    dataset_dir = dataset_dir.resolve()
    if isinstance(dataset_dir, RemotePath):
        return pathlib.Path(dataset_dir.name + suffix).resolve()
    return dataset_dir.with_name(dataset_dir.name + suffix)


def unreadable(path: DatasetPath, error: OSError) -> DataError:
    """Return the error of a local file that the operating system could not read."""
    return DataError(
        f"{path} cannot be read ({error.strerror or error}); check the disk or the mount, and copy the file again if "
        "it is lost"
    )


def open_files(paths: Sequence[DatasetPath]) -> OpenFiles:
    """Open files that are all local or all remote; raise FileNotFoundError for a missing local one."""
    remote = [path for path in paths if isinstance(path, RemotePath)]
    if remote:
        return RemoteFiles(remote)
    return LocalFiles([path for path in paths if isinstance(path, pathlib.Path)])


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    import tensorflow as tf

    try:
        yield
    except tf.errors.NotFoundError as e:
        raise FileNotFoundError(f"{url} does not exist") from e
    except tf.errors.OutOfRangeError as e:
        raise EOFError(f"{url} ends before") from e
    except tf.errors.OpError as e:
        raise DataError(
            f"{url} cannot be used ({' '.join(e.message.split())}); check the address, the credentials "
            "(gcloud auth application-default login) and the network"
        ) from e
