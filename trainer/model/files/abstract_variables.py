"""Models whose variables have shapes and no values: what a file would cost is known before it costs anything."""

import contextlib
from collections.abc import Iterator

import keras
from keras.src.backend.common import global_state

_UNINITIALIZED = "uninitialized_variables"


@contextlib.contextmanager
def variables_without_memory() -> Iterator[None]:
    """Models built in the block cannot compute, and are for looking at their shapes alone."""
    before = list(global_state.get_global_attribute(_UNINITIALIZED) or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        # Keras would make them real at the end of the next such scope.
        global_state.set_global_attribute(_UNINITIALIZED, before)
