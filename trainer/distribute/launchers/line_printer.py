"""Print lines without ever blocking: a paused terminal must not stop the launcher."""

import queue
import threading
from collections.abc import Callable
from types import TracebackType

_MAX_WAITING_LINES = 10_000


class LinePrinter:
    """A printer that hands each line to `show` in another thread, in order; leaving the block waits for all of them.

    When too many are waiting, lines are dropped, and their number is printed instead.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._num_left_out = 0
        self._thread = threading.Thread(target=self._run, name="line printer", daemon=True)

    def __call__(self, line: str) -> None:
        if self._lines.qsize() >= _MAX_WAITING_LINES:
            self._num_left_out += 1
            return
        if self._num_left_out:
            self._lines.put(f"({self._num_left_out} lines were left out here; the log files have them)")
            self._num_left_out = 0
        self._lines.put(line)

    def __enter__(self) -> "LinePrinter":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._show(line)
            except (OSError, ValueError):
                continue  # nobody reads any more; the log files have it all
