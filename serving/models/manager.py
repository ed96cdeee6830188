"""Keep the versions in memory those that the directories hold: a new one is loaded beside the old one, then swapped in.

A poll compares the versions on the disk with those in memory. A new version is loaded, and checked as `Serving` says,
while the others answer; it becomes available; then those that are no longer wanted refuse new requests, answer the ones
they have, and are dropped. A version that fails ends in the state END with its error, and stays out until its files
change. Order and rules: tensorflow_serving/core/availability_preserving_policy.cc and
tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc.
"""

import contextlib
import gc
import logging
import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from serving.models.base_path import poll_versions
from serving.models.model import Model, Models
from serving.models.model_config import ModelConfig
from serving.models.periodic import Periodic
from serving.models.servable import PLAIN, Servable, Serving, State
from serving.models.version_policy import find_unneeded
from serving.protocol.status import Code, RequestError
from trainer.errors import ArtifactError

# Versions that have ended and are gone from the disk stay in the status; these many of a model, the last ones.
_MAX_GONE: Final = 16
# The files of a version, as far as needed to see that they changed: path, size, time and inode of each.
Fingerprint = tuple[tuple[str, int, int, int], ...]


class _Served(NamedTuple):
    config: ModelConfig
    model: Model


class VersionManager:
    """Loads and unloads the versions of the models of a server. Thread-safe.

    Attributes:
        models: the models of the server; the manager alone adds and removes them.
    """

    def __init__(
        self,
        models: Models,
        *,
        serving: Serving = PLAIN,
        tell: Callable[[str], None] = logging.getLogger(__name__).info,
    ) -> None:
        """Create a manager of no models yet.

        Args:
            models: a new one.
            serving: how versions are loaded, checked and run.
            tell: called with a line about each version that comes, goes or is refused.
        """
        self.models = models
        self._serving = serving
        self._tell = tell
        # Polls and reloads come one after the other.
        self._lock = threading.RLock()
        self._served: Mapping[str, _Served] = {}
        self._refused: dict[tuple[str, pathlib.Path], Fingerprint] = {}
        self._problems: dict[str, str] = {}
        self._drains: list[threading.Thread] = []
        self._polls: Periodic | None = None

    def start(self, configs: Sequence[ModelConfig], *, poll_wait_secs: float) -> None:
        """Load the versions of the models, then look for others every `poll_wait_secs` in a thread; 0: never.

        Raises:
            ArtifactError: a model has no version that can be loaded, or a label of a version that is not served.
        """
        try:
            self.reload(configs)
        except RequestError as e:
            raise ArtifactError(e.message) from None
        if poll_wait_secs > 0:
            self._polls = Periodic(self.poll, interval_secs=poll_wait_secs, name="versions")
            self._polls.start()

    def stop(self) -> None:
        """Look for no more versions; those that are loaded stay."""
        if self._polls is not None:
            self._polls.stop()

    def poll(self) -> None:
        """Compare once, and load what is new; return when it is available or refused.

        Versions that go are drained in threads of their own, see `wait_until_drained`.
        """
        with self._lock:
            for served in self._served.values():
                try:
                    self._load_new(served, unload=True)
                    self._unload_unneeded(served)
                    self._problems.pop(served.config.name, None)
                except OSError as e:
                    self._tell_once(
                        served.config.name,
                        f"Could not find base path {served.config.base_path} for servable {served.config.name} "
                        f"({e.strerror}); its versions in memory stay",
                    )

    def reload(self, configs: Sequence[ModelConfig]) -> None:
        """Serve these models and no others; return when their versions are available.

        A model that keeps its name and base path keeps its versions. Nothing changes unless everything can be served.

        Raises:
            RequestError: a base path or every version of a model is missing or cannot be loaded, or a label is of a
                version that is not served.
        """
        with self._lock:
            for config in configs:
                _check_on_disk(config)
            before = self._served
            after = {config.name: _Served(config, self._model_for(config)) for config in configs}
            try:
                for served in after.values():
                    self._load_new(served, unload=False)
                    _check_in_memory(served)
            except RequestError:
                self._drop(after, keep=before)
                self.poll()
                raise
            for served in after.values():
                served.model.labels = dict(served.config.labels)
            self._served = after
            self.models.replace(*(served.model for served in after.values()))
            self._drop(before, keep=after)
            self.poll()

    def wait_until_drained(self) -> None:
        """Wait until every version that had to go has answered its requests and is dropped."""
        for drain in list(self._drains):
            drain.join()

    def _model_for(self, config: ModelConfig) -> Model:
        served = self._served.get(config.name)
        if served is not None and served.config.base_path == config.base_path:
            return served.model
        return Model(name=config.name)

    def _load_new(self, served: _Served, *, unload: bool) -> None:
        """Load the new versions, highest first; with `unload`, drain before each what can go already, for its memory.

        Raises OSError if the base path is gone.
        """
        config, model = served
        found = poll_versions(config.base_path)
        wanted = config.policy.choose(found)
        for version in sorted(wanted, reverse=True):
            if self._is_new(model, version, found[version]):
                if unload:
                    self._drain_unneeded(model, wanted)
                self._load(model, version, found[version])

    def _unload_unneeded(self, served: _Served) -> None:
        config, model = served
        found = poll_versions(config.base_path)
        self._drain_unneeded(model, config.policy.choose(found))
        _forget_gone(model, found)

    def _is_new(self, model: Model, version: int, path: pathlib.Path) -> bool:
        servable = model.servables.get(version)
        if servable is None:
            return True
        if servable.state in (State.LOADING, State.AVAILABLE):
            return False
        return self._refused.get((model.name, path)) != _fingerprint(path)

    def _load(self, model: Model, version: int, path: pathlib.Path) -> None:
        # Taken before the load: files that change meanwhile are a reason to try again.
        fingerprint = _fingerprint(path)
        servable = Servable(model_name=model.name, version=version, path=path, serving=self._serving)
        model.servables = {**model.servables, version: servable}
        servable.load()
        if servable.error is None:
            self._refused.pop((model.name, path), None)
            self._tell(f"version {version} of {model.name} is available")
            return
        self._refused[model.name, path] = fingerprint
        staying = sorted(v for v, s in model.servables.items() if s.state is State.AVAILABLE)
        others = f"; version {', '.join(map(str, staying))} stays" if staying else ""
        self._tell(f"version {version} of {model.name} is refused: {servable.error.message}{others}")

    def _drain_unneeded(self, model: Model, wanted: set[int]) -> None:
        available = {v: s for v, s in model.servables.items() if s.state is State.AVAILABLE}
        for version in find_unneeded(available, wanted):
            self._drain(available[version])

    def _drop(self, served: Mapping[str, _Served], *, keep: Mapping[str, _Served]) -> None:
        """Drain the models of `served` that are not those of `keep`."""
        kept = {id(other.model) for other in keep.values()}
        for _, model in served.values():
            if id(model) not in kept:
                for servable in model.servables.values():
                    self._drain(servable)

    def _drain(self, servable: Servable) -> None:
        if servable.state is not State.AVAILABLE:
            return
        begun = threading.Event()
        drain = threading.Thread(target=self._unload, args=(servable, begun), name="drain", daemon=True)
        self._drains = [thread for thread in self._drains if thread.is_alive()]
        self._drains.append(drain)
        drain.start()
        begun.wait()

    def _unload(self, servable: Servable, begun: threading.Event) -> None:
        try:
            servable.unload(on_begun=begun.set)
        finally:
            begun.set()
        # A loaded SavedModel is full of reference cycles; its memory is wanted back now, not some time later.
        gc.collect()
        self._tell(f"version {servable.version} of {servable.model_name} is unloaded")

    def _tell_once(self, name: str, problem: str) -> None:
        if self._problems.get(name) != problem:
            self._problems[name] = problem
            self._tell(problem)


def _check_on_disk(config: ModelConfig) -> None:
    try:
        found = poll_versions(config.base_path)
    except OSError as e:
        raise RequestError(
            Code.INVALID_ARGUMENT,
            f"Could not find base path {config.base_path} for servable {config.name} ({e.strerror}); correct its base "
            "path",
        ) from None
    wanted = config.policy.choose(found)
    if not wanted:
        raise RequestError(
            Code.NOT_FOUND,
            f"{config.base_path} holds no version of {config.name} to serve (it holds "
            f"{', '.join(map(str, found)) or 'none'}); put one there, or choose others",
        )
    for label, version in config.labels.items():
        if version not in wanted:
            raise _not_available(config.name, label, version)


def _check_in_memory(served: _Served) -> None:
    """Raise RequestError if the model cannot answer, or one of its labels not."""
    available = [v for v, s in served.model.servables.items() if s.state is State.AVAILABLE]
    if not available:
        errors = [s.error for _, s in sorted(served.model.servables.items()) if s.error is not None]
        raise errors[-1] if errors else RequestError(Code.UNAVAILABLE, f"{served.config.name} has no version to serve")
    for label, version in served.config.labels.items():
        if version not in available:
            raise _not_available(served.config.name, label, version)


def _not_available(name: str, label: str, version: int) -> RequestError:
    return RequestError(
        Code.FAILED_PRECONDITION,
        f"Request to assign label to version {version} of model {name}, which is not currently available for "
        f"inference; serve that version, or move the label {label}",
    )


def _forget_gone(model: Model, found: Mapping[int, pathlib.Path]) -> None:
    gone = sorted(v for v, s in model.servables.items() if s.state is State.END and v not in found)
    forgotten = set(gone[:-_MAX_GONE])
    if forgotten:
        model.servables = {v: s for v, s in model.servables.items() if v not in forgotten}


def _fingerprint(path: pathlib.Path) -> Fingerprint:
    """Return what shows that a file of a version was changed, added or removed."""
    found = []
    for file in sorted(path.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # removed at this moment
            stat = file.stat()
            found.append((file.relative_to(path).as_posix(), stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return tuple(found)
