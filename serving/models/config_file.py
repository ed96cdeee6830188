"""Follow a `models.config`: what it asks for is served soon after it changes."""

import pathlib
from collections.abc import Callable

from serving.models.manager import VersionManager
from serving.models.model_config import read_model_config
from serving.protocol.status import RequestError
from trainer.errors import ArtifactError


class ConfigFile:
    """The file of a manager that serves it already."""

    def __init__(self, path: pathlib.Path, manager: VersionManager, *, tell: Callable[[str], None]) -> None:
        self._path = path
        self._manager = manager
        self._tell = tell
        self._last = self._read()

    def reload_if_changed(self) -> None:
        """Serve what the file asks for now; if that cannot be, tell why, once, and leave the models as they are."""
        text = self._read()
        if text == self._last:
            return
        self._last = text
        try:
            self._manager.reload(read_model_config(self._path))
        except (ArtifactError, RequestError) as e:
            self._tell(f"{self._path} is not used, and the models stay: {e}")
        else:
            self._tell(f"{self._path} was read again")

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except OSError:
            return None
