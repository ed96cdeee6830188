"""Locks between processes: files that the kernel unlocks when their holder ends, in whatever way (flock(2)).

The file says in JSON who holds it. It stays where it is when it is released, and means nothing then. On NFS, Linux
passes flock on to the server, so that hosts exclude each other too; on a file system without locks, OSError is raised
(see `has_no_locks`).
"""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator

import psutil

_LOOK_EVERY_SECS = 0.1
# For a process that only looks who holds a lock, or is just taking it.
_MOMENT_SECS = 2.0
_MAX_HOLDER_BYTES = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that has taken a lock.

    Attributes:
        owner: the name of its command.
        purpose: what it holds the lock for.
        process: tells it from a process of the same number in another container, or started later; see `process_name`.
    """

    host: str
    pid: int
    since: str
    owner: str = ""
    purpose: str = ""
    process: str = ""

    @classmethod
    def of_this_process(cls, *, owner: str, purpose: str) -> "Holder":
        since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            since=since,
            owner=owner,
            purpose=purpose,
            process=process_name(os.getpid()),
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    @property
    def has_ended(self) -> bool:
        """True if it is known to be gone; its children may still hold the lock."""
        return self._is_visible and not self._is_running

    @property
    def is_alive(self) -> bool:
        """True if it is known to run. Both are False for a process on another host, of which nothing is known."""
        return self._is_visible and self._is_running

    @property
    def _is_visible(self) -> bool:
        if self.process:
            return self.process.rpartition("/")[0] == process_name(os.getpid()).rpartition("/")[0]
        return self.host == socket.gethostname()

    @property
    def _is_running(self) -> bool:
        return process_name(self.pid) == self.process if self.process else psutil.pid_exists(self.pid)


def process_name(pid: int) -> str:
    """Name a process as no other: the boot of its machine, its namespace of process numbers, its start and its number.

    Another process of this machine and namespace has the same name up to the last "/". "" without /proc.
    """
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        namespace = os.readlink("/proc/self/ns/pid")
        # Its 22nd field; the second may hold spaces and parentheses.
        started = pathlib.Path(f"/proc/{pid}/stat").read_text("utf-8", "surrogateescape").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{boot}/{namespace}/{pid}-{started}"


class HeldError(Exception):
    """Another command holds the lock, `holder`; None where it is not known which."""

    def __init__(self, holder: Holder | None) -> None:
        super().__init__(str(holder or "another process"))
        self.holder = holder


@contextlib.contextmanager
def hold(
    path: pathlib.Path,
    *,
    shared: bool = False,
    on_wait: Callable[[Holder | None], None] = lambda holder: None,
    remove: bool = False,
) -> Iterator[None]:
    """Wait until no other process holds the lock `path`, and hold it in the block.

    With `shared`, others may hold it shared as well. `on_wait` is called once where there is somebody to wait for.
    `remove` leaves no file behind, which those who wait for it notice.
    """
    descriptor = _wait(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, on_wait)
    try:
        yield
    finally:
        if remove:
            path.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def hold_folder(folder: pathlib.Path) -> Iterator[None]:
    """Wait until no other process holds the folder itself, and hold it in the block.

    It is for folders where a file for the lock would be one too many. A file system without locks for folders keeps
    nobody out.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def has_no_locks(error: OSError) -> bool:
    """Return whether the file system of a lock is one without locks."""
    return error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def hold_or_refuse(
    path: pathlib.Path,
    *,
    owner: str,
    purpose: str = "",
    patience_secs: float = 0.0,
    on_wait: Callable[[Holder], None] = lambda holder: None,
) -> Iterator[None]:
    """Hold the lock `path` in the block for the command `owner`, whose processes share it.

    Where the process that took the lock has ended and its children have not, `on_wait` is called once and they get
    `patience_secs` to end.

    Raises:
        HeldError: another command holds it.
    """
    descriptor = _take(path, owner, purpose, patience_secs, on_wait)
    try:
        yield
    finally:
        os.close(descriptor)


def is_held(path: pathlib.Path) -> bool:
    """Return whether a process holds the lock `path`.

    Raises:
        OSError: that cannot be known, as on a file system without locks (see `has_no_locks`).
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _try(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def find_holder(path: pathlib.Path) -> Holder | None:
    """Return the process that holds the lock `path`; None where nobody does, or that cannot be known."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _try(descriptor, fcntl.LOCK_EX) else _read_holder(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _wait(path: pathlib.Path, mode: int, on_wait: Callable[[Holder | None], None]) -> int:
    while True:
        descriptor = _open(path)
        try:
            if not _try(descriptor, mode):
                time.sleep(_LOOK_EVERY_SECS)  # until it has said who it is
                if not _try(descriptor, mode):
                    on_wait(_read_holder(descriptor))
                    fcntl.flock(descriptor, mode)
            if _is_at(descriptor, path):
                if mode == fcntl.LOCK_EX:
                    _write_holder(descriptor, owner="", purpose="")
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take(path: pathlib.Path, owner: str, purpose: str, patience_secs: float, on_wait: Callable[[Holder], None]) -> int:
    """Let the first process of a command take the lock alone and say who it is, then share it with the others."""
    started_at, is_told = time.monotonic(), False
    while True:
        descriptor, holder = _open(path), None
        is_taken = False
        try:
            if _try(descriptor, fcntl.LOCK_EX):
                _write_holder(descriptor, owner=owner, purpose=purpose)
                # Linux lets go of the lock for a moment in between, in which another may have come first.
                is_taken = _try(descriptor, fcntl.LOCK_SH)
            elif _try(descriptor, fcntl.LOCK_SH):
                holder = _read_holder(descriptor)
                is_taken = holder is not None and holder.owner == owner
            is_taken = is_taken and _is_at(descriptor, path)
            if is_taken:
                return descriptor
        finally:
            if not is_taken:
                os.close(descriptor)
        waited_secs = time.monotonic() - started_at
        if holder is not None and holder.has_ended and patience_secs:
            if waited_secs > patience_secs:
                raise HeldError(holder)
            if not is_told and waited_secs > _MOMENT_SECS:
                is_told = True
                on_wait(holder)
        elif holder is not None or waited_secs > _MOMENT_SECS:
            raise HeldError(holder)
        time.sleep(_LOOK_EVERY_SECS)


def _open(path: pathlib.Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _try(descriptor: int, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: pathlib.Path) -> bool:
    """Return whether the file is still the one of that name; the holder before may have removed its folder."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _write_holder(descriptor: int, *, owner: str, purpose: str) -> None:
    holder = Holder.of_this_process(owner=owner, purpose=purpose)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(dataclasses.asdict(holder)).encode() + b"\n", 0)


def _read_holder(descriptor: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(descriptor, _MAX_HOLDER_BYTES, 0)))
    except (ValueError, TypeError):
        return None
