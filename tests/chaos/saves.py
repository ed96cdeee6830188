"""See the saves of a run from outside, as the kernel tells of them (inotify), within a fraction of a millisecond."""

import ctypes
import os
import pathlib
import re
import select
import struct
import time
from typing import Final

_IN_CREATE, _IN_MOVED_TO, _IN_ISDIR = 0x100, 0x80, 0x40000000
_EVENT = struct.Struct("iIII")
_UNFINISHED: Final = re.compile(r"\.tmp-step-(\d+)-.*")
_FINISHED: Final = re.compile(r"step-(\d+)")


class SaveWatch:
    """Tells when a save begins in a directory of checkpoints, and how long saves take."""

    def __init__(self, checkpoints: pathlib.Path) -> None:
        """Watch the directory `checkpoints`, which exists."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(checkpoints), _IN_CREATE | _IN_MOVED_TO) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(checkpoints))
        self._begun: dict[int, float] = {}
        # Of the saves that were seen from beginning to end.
        self.durations_secs: list[float] = []

    def wait_for_beginning(self, timeout_secs: float) -> bool:
        """Return True as soon as a save begins, False if none does within `timeout_secs`."""
        ready, _, _ = select.select([self._fd], [], [], timeout_secs)
        return bool(ready) and self._read()

    def _read(self) -> bool:
        has_begun, now = False, time.monotonic()
        content, at = os.read(self._fd, 65536), 0
        while at < len(content):
            _, mask, _, length = _EVENT.unpack_from(content, at)
            name = content[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0").decode()
            at += _EVENT.size + length
            if (begun := _UNFINISHED.fullmatch(name)) and mask & _IN_CREATE:
                self._begun[int(begun[1])] = now
                has_begun = True
            elif (finished := _FINISHED.fullmatch(name)) and int(finished[1]) in self._begun:
                self.durations_secs.append(now - self._begun.pop(int(finished[1])))
                has_begun = False
        return has_begun

    def close(self) -> None:
        os.close(self._fd)


def finished_steps(checkpoints: pathlib.Path) -> list[int]:
    """Return the steps of the checkpoints that have their name, ascending."""
    return sorted(int(found[1]) for name in _list(checkpoints) if (found := _FINISHED.fullmatch(name)))


def unfinished_saves(checkpoints: pathlib.Path) -> set[str]:
    """Return the directories that a killed save has left: later than every whole one, unlike what a removal leaves."""
    newest = max(finished_steps(checkpoints), default=-1)
    return {name for name in _list(checkpoints) if (found := _UNFINISHED.fullmatch(name)) and int(found[1]) > newest}


def _list(directory: pathlib.Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
