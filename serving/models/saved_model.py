"""Run the signatures of a SavedModel with TensorFlow."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from serving.models.signature_defs import read_signature_defs, signature_spec
from serving.protocol.status import Code, RequestError
from serving.protocol.tensors import Array, SignatureSpec, describe_misfits


class SavedModelRuntime:
    """A SavedModel in memory. Thread-safe.

    Attributes:
        platform: what the Open Inference Protocol calls the format.
        signature_defs: the SignatureDef protocol buffers, by name.
        signatures: their inputs and outputs, by name.
    """

    platform = "tensorflow_savedmodel"

    def __init__(self, path: pathlib.Path) -> None:
        """Load the SavedModel in `path`. A damaged one raises anything, depending on the damage."""
        self.signature_defs: Mapping[str, Any] = read_signature_defs(path)
        with _without_training_warnings():
            self._loaded = tf.saved_model.load(str(path), tags=["serve"])
        # Only those that can be called: a TensorFlow 2 model also lists the operation that initialises it.
        self.signatures: Mapping[str, SignatureSpec] = {
            name: signature_spec(name, proto)
            for name, proto in self.signature_defs.items()
            if name in self._loaded.signatures
        }

    def run(self, signature: SignatureSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a signature on inputs with the dtypes of their `TensorSpec`; strings are arrays of `bytes`.

        Raises:
            RequestError: the graph refuses the values.
        """
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        try:
            outputs = self._loaded.signatures[signature.name](**tensors)
        except tf.errors.OpError as e:
            message = _graph_error(e.message) + describe_misfits(signature, inputs)
            raise RequestError(Code(e.error_code), message) from None
        return {name: np.asarray(value.numpy()) for name, value in outputs.items()}


@contextlib.contextmanager
def _without_training_warnings() -> Iterator[None]:
    """Drop the warnings, one for each variable of a TensorFlow 1 model, that it cannot be trained further."""

    def is_kept(record: logging.LogRecord) -> bool:
        return "may not be visible to training APIs" not in record.getMessage()

    logger = tf.get_logger()
    logger.addFilter(is_kept)
    try:
        yield
    finally:
        logger.removeFilter(is_kept)


# Lines of a graph's error that name nodes and files of the exporting machine, not the cause.
_NOISE = ("Graph execution error", "Detected at node", "<stack traces unavailable>", "File ", "[[{{node")


def _graph_error(message: str) -> str:
    lines = [line.strip() for line in message.splitlines()]
    return " ".join(" ".join(line for line in lines if not line.startswith(_NOISE)).split())
