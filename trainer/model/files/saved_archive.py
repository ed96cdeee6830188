"""The zip file that Keras 3 saves a model in: which members it may have, and how large. Nothing is extracted by name.

metadata.json  config.json  model.weights.h5
"""

import contextlib
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from typing import IO, Any

from trainer.errors import ModelError
from trainer.model.files.saved_config import MAX_CONFIG_BYTES, parse_config

CONFIG_MEMBER, WEIGHTS_MEMBER = "config.json", "model.weights.h5"
_MEMBERS = ("metadata.json", CONFIG_MEMBER, WEIGHTS_MEMBER)
# Keras stores its members as they are, and floats that someone packs again hardly become smaller.
_MAX_EXPANSION, _ALWAYS_FINE_BYTES = 10, 64 << 20


@contextlib.contextmanager
def open_archive(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    """Open a saved model. Raises ModelError if it holds more than numbers, or claims to be far larger than it is."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in (WEIGHTS_MEMBER, CONFIG_MEMBER):
            if name not in names:
                raise ModelError(f"{path} holds no {name}, so it is not a model saved by Keras 3")
        for info in archive.infolist():
            if info.filename not in _MEMBERS or names.count(info.filename) > 1:
                raise ModelError(
                    f"{path} holds {info.filename[:100]!r}, which is not one of {', '.join(_MEMBERS)}, each once; save "
                    "the model again with Keras 3, without layers that keep files"
                )
            _check_size(info, path)
        yield archive


def read_config(archive: zipfile.ZipFile) -> Any:
    """Read the configuration of a saved model. Raises ValueError if it is no JSON."""
    return parse_config(archive.read(CONFIG_MEMBER))


@contextlib.contextmanager
def open_weights(archive: zipfile.ZipFile) -> Iterator[IO[bytes]]:
    """Unpack the weights to a file without a name: seeking within a member would unpack it again each time."""
    with tempfile.TemporaryFile() as unpacked:
        with archive.open(WEIGHTS_MEMBER) as member:
            shutil.copyfileobj(member, unpacked, 1 << 20)
        yield unpacked


def _check_size(info: zipfile.ZipInfo, path: pathlib.Path) -> None:
    limit = MAX_CONFIG_BYTES
    if info.filename == WEIGHTS_MEMBER:
        limit = max(_ALWAYS_FINE_BYTES, _MAX_EXPANSION * path.stat().st_size)
    if info.file_size > limit:
        raise ModelError(
            f"{path} has {path.stat().st_size:,} bytes and claims to hold {info.file_size:,} bytes of {info.filename}; "
            "it is refused"
        )
