"""The models of a server by name, their versions and labels, and which version answers a request."""

import contextlib
import pathlib
import threading
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from serving.models.base_path import find_versions
from serving.models.servable import PLAIN, Servable, Serving, State, not_found
from serving.protocol.status import Code, RequestError, invalid
from trainer.errors import ArtifactError

Versions = Literal["latest", "all"]


class Target(NamedTuple):
    """The model that a request asks for, and at most one of a version and a label; with neither, the newest version."""

    model: str
    version: int | None = None
    label: str | None = None

    def __str__(self) -> str:
        return f"Latest({self.model})" if self.version is None else f"Specific({self.model}, {self.version})"


class Model:
    """The versions of one model. Thread-safe.

    Attributes:
        servables: the versions, by number; replaced as a whole when they change, so that readers need no lock.
        labels: versions by label.
    """

    def __init__(
        self,
        *,
        name: str,
        base_path: pathlib.Path | None = None,
        versions: Versions = "latest",
        labels: Mapping[str, int] | None = None,
        serving: Serving = PLAIN,
    ) -> None:
        """Find the versions without loading them.

        With "latest" the highest version is served, with "all" every one; without `base_path` there are none until
        somebody adds them, such as `manager.VersionManager`.
        Raises ArtifactError if `base_path` holds no version.
        """
        self.name = name
        self.labels: Mapping[str, int] = dict(labels or {})
        self.servables: Mapping[int, Servable] = {}
        if base_path is None:
            return
        found = find_versions(base_path)
        chosen = list(found) if versions == "all" else [max(found)]
        self.servables = {v: Servable(model_name=name, version=v, path=found[v], serving=serving) for v in chosen}

    def load(self) -> None:
        """Load the versions one after the other. Raises ArtifactError if one cannot be loaded."""
        for servable in self.servables.values():
            servable.load()
            if servable.error is not None:
                raise ArtifactError(f"{servable.error.message}; export the model again")

    @property
    def is_ready(self) -> bool:
        return any(s.state is State.AVAILABLE for s in self.servables.values())

    def find(self, version: int | None = None, label: str | None = None) -> Servable:
        """Return a version, that of a label, or the newest available one.

        Raises RequestError: 404 for a version that is not served, 400 for an unknown label; 503 while it is loading.
        """
        if label is not None:
            version = self.version_of(label)
        servables = self.servables.values()
        wanted = servables if version is None else [s for s in servables if s.version == version]
        available = [s for s in wanted if s.state is State.AVAILABLE]
        if available:
            return max(available, key=lambda s: s.version)
        target = Target(self.name, version)
        if any(s.state in (State.START, State.LOADING) for s in wanted):
            raise RequestError(Code.UNAVAILABLE, f"Servable is still loading: {target}; try again")
        raise not_found(str(target))

    def version_of(self, label: str) -> int:
        """Return the version of a label. Raises RequestError (400) for an unknown one."""
        if label not in self.labels:
            raise invalid(f"Unrecognized servable version label: {label}")
        return self.labels[label]


class Models:
    """The models of a server, by name. Thread-safe."""

    def __init__(self, *models: Model) -> None:
        self._lock = threading.Lock()
        self._models: Mapping[str, Model] = {model.name: model for model in models}

    @property
    def names(self) -> list[str]:
        return sorted(self._models)

    @property
    def is_ready(self) -> bool:
        return all(model.is_ready for model in self._models.values())

    def replace(self, *models: Model) -> None:
        """Serve these models and no others; loading and unloading them is the caller's."""
        with self._lock:
            self._models = {model.name: model for model in models}

    def get(self, name: str) -> Model | None:
        return self._models.get(name)

    def available_versions(self, name: str) -> list[int]:
        """Return the versions of a model that answer requests, ascending."""
        model = self.get(name)
        return [] if model is None else sorted(v for v, s in model.servables.items() if s.state is State.AVAILABLE)

    @contextlib.contextmanager
    def use(self, target: Target) -> Iterator[Servable]:
        """Keep the version that `target` asks for loaded in the block.

        Raises RequestError as `Model.find` does; an unknown name is 404 as well.
        """
        model = self.get(target.model)
        if model is None:
            raise not_found(str(target))
        while True:
            servable = model.find(target.version, target.label)
            with contextlib.ExitStack() as uses:
                try:
                    uses.enter_context(servable.use())
                except RequestError:
                    continue  # unloaded between both lines: another version answers, or `find` says that none does
                yield servable
                return


def find_statuses(models: Models, target: Target) -> list[Servable]:
    """Return the versions whose states `target` asks for: all of a model, one, or that of a label; ascending.

    Raises RequestError: 404 for an unknown model or version, 400 for an unknown label.
    """
    model = models.get(target.model)
    if model is None:
        raise RequestError(Code.NOT_FOUND, f"Could not find any versions of model {target.model}")
    version = target.version if target.label is None else model.version_of(target.label)
    servables = [s for v, s in sorted(model.servables.items()) if version in (None, v)]
    if not servables:
        raise RequestError(Code.NOT_FOUND, f"Could not find version {version} of model {target.model}")
    return servables
