"""Change what Keras does within a block: build without memory, or without running a file's code."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.saving import serialization_lib
from keras.src.utils import file_utils

_UNINITIALIZED = "uninitialized_variables"


@contextlib.contextmanager
def variables_without_memory() -> Iterator[None]:
    """Give the variables of models built in the block shapes and no values, so that they cannot compute."""
    before = list(global_state.get_global_attribute(_UNINITIALIZED) or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        # Keras would give them values at the end of its next scope, which may be inside a graph.
        global_state.set_global_attribute(_UNINITIALIZED, before)


@contextlib.contextmanager
def safe_mode(is_on: bool) -> Iterator[None]:
    """Refuse, where `is_on`, to build layers that run code of the file that they come from."""
    with serialization_lib.SafeModeScope(is_on):
        yield


@contextlib.contextmanager
def get_file_replaced(replacement: Callable[..., Any]) -> Iterator[None]:
    """Let keras.applications call `replacement` where it would download a file of weights."""
    before = file_utils.get_file
    file_utils.get_file = replacement
    try:
        yield
    finally:
        file_utils.get_file = before
