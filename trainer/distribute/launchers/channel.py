"""The channel between a worker and its launcher, through the guard: one JSON message per line, both ways."""

import json
import os
import select
import socket
from typing import Any

# The environment variable with the file descriptor of the worker's end.
VARIABLE = "TRAINER_CHANNEL_FD"

Message = dict[str, Any]


class Channel:
    """One end of a socket pair, which has no name in any file system or network, so that nothing is left behind."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._rest = b""
        self.is_open = True

    @classmethod
    def pair(cls) -> tuple["Channel", "Channel"]:
        """Return two connected ends: the guard's and the worker's."""
        ours, theirs = socket.socketpair()
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        return self._end.fileno()

    def say(self, message: Message) -> None:
        """Send `message`; it is lost if the other end is closed."""
        try:
            self._end.sendall(json.dumps(message).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            self.is_open = False

    def hear(self, timeout_secs: float = 0.0) -> list[Message]:
        """Return the messages that have arrived; if there are none, wait up to `timeout_secs` for one."""
        while self.is_open and select.select([self._end], [], [], timeout_secs)[0]:
            try:
                content = self._end.recv(65536)
            except ConnectionResetError:
                content = b""
            self.is_open = bool(content)
            *lines, self._rest = (self._rest + content).split(b"\n")
            if lines:
                return [json.loads(line) for line in lines]
        return []

    def close(self) -> None:
        self.is_open = False
        self._end.close()


def of_this_worker() -> Channel | None:
    """Return the worker's end of the channel; None if no guard has given this process one."""
    fd = os.environ.get(VARIABLE)
    return None if fd is None else Channel(socket.socket(fileno=int(fd)))
