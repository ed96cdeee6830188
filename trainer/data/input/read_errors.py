"""Errors of reading records inside tf.data, which turns any exception into an `OpError` with a traceback as its text.

`raising_in_graph` numbers the errors where they happen; `as_data_errors` raises them again where batches are consumed.
"""

import collections
import contextlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from trainer.errors import DataError

_NUMBERS = itertools.count(1)
# Readers of several batches may fail before the first failure is seen.
_RECENT: collections.deque[tuple[int, DataError]] = collections.deque(maxlen=64)
_NUMBER: Final = re.compile(r"read error (\d+):")


class _NumberedError(Exception):
    """A `DataError` on its way through the graph."""


def raising_in_graph(read: Callable[..., Any]) -> Callable[..., Any]:
    """Return `read` for `tf.numpy_function`, so that `as_data_errors` finds its errors."""

    def numbered(*arguments: Any) -> Any:
        try:
            return read(*arguments)
        except DataError as e:
            number = next(_NUMBERS)
            _RECENT.append((number, e))
            raise _NumberedError(f"read error {number}: {e}") from None

    return numbered


@contextlib.contextmanager
def as_data_errors() -> Iterator[None]:
    """Raise the `DataError` of a record that could not be read in the block, instead of tf.data's error."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as e:
        numbers = {int(number) for number in _NUMBER.findall(str(e))}
        error = next((error for number, error in _RECENT if number in numbers), None)
        if error is None:
            raise
        raise error from e
