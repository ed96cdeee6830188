"""One version of a model: its state, the requests that use it, and its signatures.

States and error messages are TensorFlow Serving's.
"""

import contextlib
import enum
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

from serving.batching.request_queue import Answer, MakeQueue, RequestQueue, UnbatchedQueue
from serving.protocol.status import Code, RequestError, invalid
from serving.protocol.tensors import Array, SignatureSpec

DEFAULT_SIGNATURE = "serving_default"


class State(enum.Enum):
    """The state of a version; the names are those of TensorFlow Serving's ModelVersionStatus."""

    START = "START"
    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    UNLOADING = "UNLOADING"
    END = "END"


class Runtime(Protocol):
    """A model in memory, such as `saved_model.SavedModelRuntime`.

    Attributes:
        platform: its format as the Open Inference Protocol names it, <project>_<format>.
        signature_defs: the SignatureDef protocol buffers, by name.
        signatures: their inputs and outputs, by name.
    """

    platform: str
    signature_defs: Mapping[str, Any]
    signatures: Mapping[str, SignatureSpec]

    def run(self, signature: SignatureSpec, inputs: Mapping[str, Array]) -> dict[str, Array]: ...


def load_saved_model(path: pathlib.Path) -> Runtime:
    """Load the SavedModel in `path` with TensorFlow."""
    from serving.models.saved_model import SavedModelRuntime

    return SavedModelRuntime(path)


class Serving(NamedTuple):
    """How the versions of a model are loaded and run.

    Attributes:
        load: from the path of a version to the model in memory; raises anything for a damaged one.
        check: called with the version's path and its runtime before it is available; raises RequestError to refuse it.
        make_queue: from what runs a signature, and the names of the model and the signature, to its queue.
    """

    load: Callable[[pathlib.Path], Runtime] = load_saved_model
    check: Callable[[pathlib.Path, Runtime], None] = lambda path, runtime: None
    make_queue: MakeQueue = lambda run, model, signature: UnbatchedQueue(run, name=f"{model}-{signature}")


PLAIN: Final = Serving()


class Servable:
    """One version of a model. Thread-safe.

    A request holds it in a `use` block from before its inputs are decoded until its answer is there; `unload` waits for
    the end of all of them.
    """

    def __init__(self, *, model_name: str, version: int, path: pathlib.Path, serving: Serving = PLAIN) -> None:
        """Create a version, not loaded yet."""
        self.model_name = model_name
        self.version = version
        self.path = path
        self._serving = serving
        self._changed = threading.Condition()
        self._num_users = 0
        self._state = State.START
        self._error: RequestError | None = None
        self._runtime: Runtime | None = None
        self._queues: dict[str, RequestQueue] = {}

    @property
    def state(self) -> State:
        return self._state

    @property
    def error(self) -> RequestError | None:
        """The reason why loading failed, if it did."""
        return self._error

    @property
    def platform(self) -> str:
        """The format of an available version, as the Open Inference Protocol names it."""
        return "" if self._runtime is None else self._runtime.platform

    @property
    def signature_defs(self) -> Mapping[str, Any]:
        """The SignatureDef protocol buffers of an available version, by name."""
        return {} if self._runtime is None else self._runtime.signature_defs

    @property
    def signatures(self) -> Mapping[str, SignatureSpec]:
        """The inputs and outputs of an available version, by signature."""
        return {} if self._runtime is None else self._runtime.signatures

    def load(self) -> None:
        """Load the version; afterwards the state is AVAILABLE, or END with `error` set."""
        with self._changed:
            if self._state is not State.START:
                return
            self._state = State.LOADING
        try:
            runtime = self._serving.load(self.path)
            self._serving.check(self.path, runtime)
        except RequestError as e:
            self._end(e)
            return
        except Exception as e:
            # A damaged SavedModel raises anything from IndexError to OpError, depending on the damage.
            message = f"could not load {self.path}: {' '.join(str(e).split())}"
            self._end(RequestError(Code.UNKNOWN, message))
            return
        with self._changed:
            self._runtime = runtime
            self._queues = {name: self._make_queue(runtime, name) for name in runtime.signatures}
            self._state = State.AVAILABLE

    def unload(self, *, on_begun: Callable[[], None] = lambda: None) -> None:
        """Refuse new requests, call `on_begun`, wait for the requests that use the version, and drop the model."""
        with self._changed:
            if self._state is State.UNLOADING:
                return  # whoever began it ends it
            if self._state is not State.AVAILABLE:
                self._state = State.END
                return
            self._state = State.UNLOADING
        on_begun()
        with self._changed:
            self._changed.wait_for(lambda: self._num_users == 0)
        for queue in self._queues.values():
            queue.close()
        self._end(None)

    @contextlib.contextmanager
    def use(self) -> Iterator["Servable"]:
        """Keep the version loaded in the block. Raises RequestError (404) if it is not available."""
        with self._changed:
            if self._state is not State.AVAILABLE:
                raise not_found(f"Specific({self.model_name}, {self.version})")
            self._num_users += 1
        try:
            yield self
        finally:
            with self._changed:
                self._num_users -= 1
                self._changed.notify_all()

    def signature(self, name: str | None) -> SignatureSpec:
        """Return the signature `name`; None or "" is the default. Raises RequestError (400) for an unknown one."""
        name = name or DEFAULT_SIGNATURE
        try:
            return self.signatures[name]
        except KeyError:
            known = ", ".join(sorted(self.signatures)) or "none"
            raise invalid(f'Serving signature name: "{name}" not found in signature def (there are: {known})') from None

    def submit(
        self, signature_name: str | None, inputs: Mapping[str, Array], *, deadline_secs: float | None = None
    ) -> Answer:
        """Add a request to the queue of a signature; inputs, deadline and future as in `RequestQueue.submit`.

        Raises:
            RequestError: the version is not available, lacks the signature, its queue is full, or the inputs cannot be
                batched. The future raises it if the graph refuses the values.
        """
        with self._changed:
            queues = self._queues
        if not queues:
            raise not_found(f"Specific({self.model_name}, {self.version})")
        return queues[self.signature(signature_name).name].submit(inputs, deadline_secs=deadline_secs)

    def run(self, signature_name: str | None, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a signature as `submit` does, and return its outputs by name."""
        return self.submit(signature_name, inputs).result()

    def _make_queue(self, runtime: Runtime, name: str) -> RequestQueue:
        signature = runtime.signatures[name]
        return self._serving.make_queue(lambda inputs: runtime.run(signature, inputs), self.model_name, name)

    def _end(self, error: RequestError | None) -> None:
        with self._changed:
            self._runtime, self._queues = None, {}
            # A new error: the traceback of the one that was raised would keep the refused model in memory.
            self._error = None if error is None else RequestError(error.code, error.message)
            self._state = State.END


def not_found(request: str) -> RequestError:
    """Return TensorFlow Serving's error for a model or version that is not served (HTTP 404)."""
    return RequestError(Code.NOT_FOUND, f"Servable not found for request: {request}")
