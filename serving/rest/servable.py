"""Hold models in memory: the versions under a SavedModel base path, their states, and running a signature.

States and error messages are TensorFlow Serving's.
"""

import contextlib
import enum
import logging
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from serving.base_path import find_versions
from serving.rest.batching import batch_size_of, check_outputs
from serving.rest.signature_specs import Array, SignatureSpec, describe_misfits, read_signature_defs, signature_spec
from serving.rest.status import Code, RequestError, invalid
from trainer.errors import ArtifactError

Versions = Literal["latest", "all"]
OnRun = Callable[[float], None]

DEFAULT_SIGNATURE = "serving_default"


class State(enum.Enum):
    """The state of a version; the names are those of TensorFlow Serving's ModelVersionStatus."""

    START = "START"
    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    UNLOADING = "UNLOADING"
    END = "END"


class Servable:
    """One version of a model. Thread-safe; runs in progress survive `unload`."""

    def __init__(self, *, model_name: str, version: int, path: pathlib.Path, max_batch_size: int | None = None) -> None:
        """Create a version, not loaded yet; `max_batch_size` is that of a cluster's batching, None without batching."""
        self.model_name = model_name
        self.version = version
        self.path = path
        self.max_batch_size = max_batch_size
        self._lock = threading.Lock()
        self._state = State.START
        self._error: RequestError | None = None
        self._loaded: Any = None
        self._signature_defs: dict[str, Any] = {}
        self._signatures: dict[str, SignatureSpec] = {}

    @property
    def state(self) -> State:
        return self._state

    @property
    def error(self) -> RequestError | None:
        """The reason why loading failed, if it did."""
        return self._error

    @property
    def signature_defs(self) -> Mapping[str, Any]:
        """The SignatureDef protocol buffers of an available version, by name."""
        return self._signature_defs

    def load(self) -> None:
        """Load the SavedModel; afterwards the state is AVAILABLE, or END with `error` set."""
        with self._lock:
            if self._state is not State.START:
                return
            self._state = State.LOADING
        try:
            signature_defs = read_signature_defs(self.path)
            with _without_training_warnings():
                loaded = tf.saved_model.load(str(self.path), tags=["serve"])
        except Exception as e:
            # A damaged SavedModel raises anything from IndexError to OpError, depending on the damage.
            message = f"could not load {self.path}: {_one_line(str(e))}"
            with self._lock:
                self._error, self._state = RequestError(Code.UNKNOWN, message), State.END
            return
        with self._lock:
            self._loaded = loaded
            self._signature_defs = signature_defs
            self._signatures = {name: signature_spec(name, proto) for name, proto in signature_defs.items()}
            self._state = State.AVAILABLE

    def unload(self) -> None:
        """Refuse new runs and drop the model; memory is freed when the last run ends."""
        with self._lock:
            self._state = State.UNLOADING
            self._loaded = None
            self._state = State.END

    def signature(self, name: str | None) -> SignatureSpec:
        """Return the signature `name`; None or "" is the default. Raises RequestError (400) for an unknown one."""
        name = name or DEFAULT_SIGNATURE
        try:
            return self._signatures[name]
        except KeyError:
            known = ", ".join(sorted(self._loaded.signatures)) if self._loaded is not None else "none"
            raise invalid(f'Serving signature name: "{name}" not found in signature def (there are: {known})') from None

    def run(
        self, signature_name: str | None, inputs: Mapping[str, Array], on_run: OnRun | None = None
    ) -> dict[str, Array]:
        """Run a signature on inputs by name, with the dtypes of their `TensorSpec`, and return the outputs by name.

        Strings are arrays of `bytes`. `on_run` is called with the seconds that TensorFlow took. Raises RequestError if
        the version is not available, lacks the signature, the graph refuses the values, or they cannot be batched.
        """
        loaded = self._loaded
        if loaded is None:
            raise _not_found(f"Specific({self.model_name}, {self.version})")
        signature = self.signature(signature_name)
        batch_size = None if self.max_batch_size is None else batch_size_of(inputs, self.max_batch_size)
        tensors = {key: tf.constant(value) for key, value in inputs.items()}
        start_secs = time.perf_counter()
        try:
            outputs = loaded.signatures[signature.name](**tensors)
        except tf.errors.OpError as e:
            message = _graph_error(e.message) + describe_misfits(signature, inputs)
            raise RequestError(Code(e.error_code), message) from None
        if on_run is not None:
            on_run(time.perf_counter() - start_secs)
        arrays = {key: np.asarray(value.numpy()) for key, value in outputs.items()}
        if batch_size is not None:
            check_outputs(arrays, batch_size)
        return arrays


class Model:
    """The versions of one model, and which of them answers a request."""

    def __init__(
        self,
        *,
        name: str,
        base_path: pathlib.Path,
        versions: Versions = "latest",
        max_batch_size: int | None = None,
    ) -> None:
        """Find the versions without loading them.

        With "latest" the highest version is served, with "all" every one; for `max_batch_size` see `Servable`.
        Raises ArtifactError if `base_path` holds no version.
        """
        self.name = name
        found = find_versions(base_path)
        chosen = list(found) if versions == "all" else [max(found)]
        self.servables = {
            v: Servable(model_name=name, version=v, path=found[v], max_batch_size=max_batch_size) for v in chosen
        }

    def load(self) -> None:
        """Load the versions one after the other. Raises ArtifactError if one cannot be loaded."""
        for servable in self.servables.values():
            servable.load()
            if servable.error is not None:
                raise ArtifactError(f"{servable.error.message}; export the model again")

    @property
    def is_ready(self) -> bool:
        return any(s.state is State.AVAILABLE for s in self.servables.values())

    def servable(self, version: int | None = None) -> Servable:
        """Return the given version, or the newest available one.

        Raises RequestError: 404 for a version that is not served; 503 while it is loading.
        """
        wanted = self.servables.values() if version is None else [s for v, s in self.servables.items() if v == version]
        available = [s for s in wanted if s.state is State.AVAILABLE]
        if available:
            return max(available, key=lambda s: s.version)
        request = f"Latest({self.name})" if version is None else f"Specific({self.name}, {version})"
        if any(s.state in (State.START, State.LOADING) for s in wanted):
            raise RequestError(Code.UNAVAILABLE, f"Servable is still loading: {request}; try again")
        raise _not_found(request)


class Models:
    """The models of a server, by name."""

    def __init__(self, *models: Model) -> None:
        self._models = {model.name: model for model in models}

    @property
    def names(self) -> list[str]:
        return sorted(self._models)

    @property
    def is_ready(self) -> bool:
        return all(model.is_ready for model in self._models.values())

    def find(self, name: str) -> Model | None:
        return self._models.get(name)

    def servable(self, name: str, version: int | None = None) -> Servable:
        """Return a version as `Model.servable` does; an unknown name is a RequestError (404) as well."""
        model = self.find(name)
        if model is None:
            raise _not_found(f"Latest({name})" if version is None else f"Specific({name}, {version})")
        return model.servable(version)


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


def _not_found(request: str) -> RequestError:
    return RequestError(Code.NOT_FOUND, f"Servable not found for request: {request}")


# Lines of a graph's error that name nodes and files of the exporting machine, not the cause.
_NOISE = ("Graph execution error", "Detected at node", "<stack traces unavailable>", "File ", "[[{{node")


def _graph_error(message: str) -> str:
    lines = [line.strip() for line in message.splitlines()]
    return _one_line(" ".join(line for line in lines if not line.startswith(_NOISE)))


def _one_line(text: str) -> str:
    return " ".join(text.split())
