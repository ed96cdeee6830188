"""Leases: a file that its holder renews, for directories that hosts share on file systems whose locks reach no host.

flock(2) keeps commands of one host apart, and of several where the file system passes it on. Some do not (NFS mounted
with local locks, many FUSE file systems) and some have none; a lease works on all of them. Nobody's clock is compared:
who comes later watches the file, and takes a lease that has not changed for `LEASE_SECS`. A holder that finds another's
name in its lease ends at once, as in the leader election of Kubernetes' client-go: it may write nothing any more.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from trainer.errors import StorageError
from trainer.system.lock import HeldError, Holder

LEASE_SECS: Final = 60.0
_RENEWALS_PER_LEASE = 6
_LOOKS_PER_LEASE = 60
_LOOK_AT_TAKING_SECS = 0.02
# Always as long, and written over in place: renewing needs no room on a full disk.
_NUM_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class _Entry:
    """The content of a lease: who holds it, and a word that each renewal changes."""

    holder: Holder
    word: str

    def to_bytes(self) -> bytes:
        text = json.dumps({"holder": dataclasses.asdict(self.holder), "word": self.word})
        return text.encode().ljust(_NUM_BYTES - 1) + b"\n"


@contextlib.contextmanager
def hold(
    path: pathlib.Path,
    holder: Holder,
    *,
    lease_secs: float = LEASE_SECS,
    on_wait: Callable[[Holder], None] = lambda holder: None,
) -> Iterator[None]:
    """Hold the lease `path` in the block, renewed by a thread; processes of one owner (`holder.owner`) share it.

    A lease outlives a holder that cannot renew it by `lease_secs`, which must be the same for all who ask. `on_wait` is
    called once where it has to be seen first whether the holder, on another host, still lives.

    Raises:
        HeldError: another owner holds it.
        OSError: the directory cannot be written.
    """
    is_creator = _take(path, holder, lease_secs, on_wait)
    is_over = threading.Event()
    renewing = threading.Thread(
        target=_keep_renewing, args=(path, holder, lease_secs, is_over), name="lease", daemon=True
    )
    renewing.start()
    try:
        yield
    finally:
        is_over.set()
        renewing.join()
        if is_creator:
            path.unlink(missing_ok=True)


def find_holder(
    path: pathlib.Path, *, lease_secs: float = LEASE_SECS, on_wait: Callable[[Holder], None] = lambda holder: None
) -> Holder | None:
    """Return who holds the lease `path`, or None if nobody does; changes nothing.

    That of another host is watched until it is renewed, or for `lease_secs`; `on_wait` is called once before.

    Raises:
        OSError: it cannot be read.
    """
    first = found = _read(path)
    if found is None or found.holder.has_ended:
        return None
    if found.holder.is_alive:
        return found.holder
    on_wait(found.holder)
    seen_at_secs = time.monotonic()
    while found == first and time.monotonic() - seen_at_secs < lease_secs:
        time.sleep(lease_secs / _LOOKS_PER_LEASE)
        found = _read(path)
    return None if found is None or found == first else found.holder


def _take(path: pathlib.Path, holder: Holder, lease_secs: float, on_wait: Callable[[Holder], None]) -> bool:
    """Return whether this process has made the lease, and is not the second of its owner."""
    seen: _Entry | None = None
    seen_at_secs = try_at_secs = time.monotonic()
    num_tries = 0
    is_told = False
    while True:
        if _create(path, holder):
            return True
        found = _read(path)
        if found is not None and found.holder.owner == holder.owner:
            return False
        now_secs = time.monotonic()
        is_renewed = is_told and found is not None and seen is not None and found != seen
        if found != seen:
            seen, seen_at_secs, try_at_secs, num_tries = found, now_secs, now_secs, 0
        if found is not None and (is_renewed or found.holder.is_alive):
            raise HeldError(found.holder)
        is_lost = (found is not None and found.holder.has_ended) or now_secs - seen_at_secs >= lease_secs
        if is_lost:
            if now_secs >= try_at_secs:
                if _replace(path, found, holder, num_tries):
                    return True
                # Another is about to take it, or was lost between its claim and its lease.
                try_at_secs, num_tries = now_secs + lease_secs, num_tries + 1
            time.sleep(_LOOK_AT_TAKING_SECS)
            continue
        if found is not None and not is_told:
            is_told = True
            on_wait(found.holder)
        time.sleep(lease_secs / _LOOKS_PER_LEASE)


def _create(path: pathlib.Path, holder: Holder) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_Entry(holder, secrets.token_hex(8)).to_bytes())
    except OSError:
        # An empty lease, left by a full disk, would be watched until it ends.
        path.unlink(missing_ok=True)
        raise
    return True


def _replace(path: pathlib.Path, lost: _Entry | None, holder: Holder, num_tries: int) -> bool:
    """Return whether this process has put its own lease in the place of a lost one.

    The word of the lost lease and the number of earlier tries name a claim that only one process can make, and only who
    made it replaces the lease; the lease itself is never away.
    """
    claim = path.with_name(f"{path.name}-{lost.word if lost else 'unreadable'}-{num_tries}")
    if not _create(claim, holder):
        return False
    try:
        if _read(path) != lost:
            return False
        os.replace(claim, path)
        return True
    finally:
        claim.unlink(missing_ok=True)


def _keep_renewing(path: pathlib.Path, holder: Holder, lease_secs: float, is_over: threading.Event) -> None:
    renewed_at_secs = time.monotonic()
    while not is_over.wait(lease_secs / _RENEWALS_PER_LEASE):
        late_secs = time.monotonic() - renewed_at_secs
        try:
            with path.open("r+b") as file:
                found = _parse(file.read(_NUM_BYTES))
                if found is not None and found.holder.owner != holder.owner:
                    _end(f"{path} was taken by {found.holder}, since it was not renewed for {late_secs:.0f} s here")
                file.seek(0)
                file.write(_Entry(found.holder if found else holder, secrets.token_hex(8)).to_bytes())
            renewed_at_secs = time.monotonic()
        except FileNotFoundError:
            if late_secs >= lease_secs or not path.parent.exists():
                _end(f"{path} is gone, and with it the right to write there")
            _create(path, holder)
        except OSError as e:
            if late_secs >= lease_secs:
                _end(f"{path} could not be renewed for {late_secs:.0f} s ({e.strerror})")


def _end(message: str) -> None:
    """End the process without a further write: another may be at work in the directory."""
    sys.stderr.write(f"error: {message}; this process ends without saving\n")
    sys.stderr.flush()
    os._exit(StorageError.exit_status)


def _read(path: pathlib.Path) -> _Entry | None:
    try:
        with path.open("rb") as file:
            return _parse(file.read(_NUM_BYTES))
    except FileNotFoundError:
        return None


def _parse(content: bytes) -> _Entry | None:
    try:
        fields = json.loads(content)
        return _Entry(Holder(**fields["holder"]), fields["word"])
    except (ValueError, TypeError, KeyError):
        return None
