"""Report progress from code that knows no console."""

import contextlib
from collections.abc import Callable
from typing import Protocol


class Advances(Protocol):
    """A counter of the parts that are done."""

    def advance(self, amount: int = 1) -> None: ...


# Called with a description and the number of parts (None: not known); a block that ends without an exception counts as
# complete. `trainer.console.progress.task_progress` is one.
ShowProgress = Callable[[str, int | None], contextlib.AbstractContextManager[Advances]]


class _Silence:
    def advance(self, amount: int = 1) -> None:
        pass


def show_nothing(description: str, total: int | None) -> contextlib.AbstractContextManager[Advances]:
    """Report nothing."""
    return contextlib.nullcontext(_Silence())
