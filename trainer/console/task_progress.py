"""How long work below the command line says how far it is, without knowing of a console."""

import contextlib
from collections.abc import Callable
from typing import Protocol


class Advances(Protocol):
    """Counts what is done."""

    def advance(self, amount: int = 1) -> None: ...


# Called with what is being done and how many parts it has, None where that is not known before; a block that ends
# without an exception has done them all. `trainer.console.progress.task_progress` is one.
ShowProgress = Callable[[str, int | None], contextlib.AbstractContextManager[Advances]]


class _Silence:
    def advance(self, amount: int = 1) -> None:
        pass


def show_nothing(description: str, total: int | None) -> contextlib.AbstractContextManager[Advances]:
    return contextlib.nullcontext(_Silence())
