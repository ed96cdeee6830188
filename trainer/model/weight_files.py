"""The arrays in a file of weights, by the names of their layers. Nothing in a file is ever run.

    .weights.h5     Keras 3: layers/<class>_<n>/vars/<i>, with the layer's name as an attribute of vars (since 3.7)
    .h5             older Keras: <layer>/<layer>/<weight>:0, in a whole saved model under model_weights/
    .keras          Keras 3's saved model: a zip file with a model.weights.h5
    .safetensors    of a run: <position>:<layer>/<weight>

Arrays are read one by one, when someone asks for one of the shape that it has: what a file only claims costs nothing.
"""

import contextlib
import dataclasses
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import h5py
import ml_dtypes
import numpy as np
import safetensors

from trainer.errors import ModelError

KINDS = (".weights.h5", ".h5", ".keras", ".safetensors")
_WEIGHTS_IN_KERAS_FILE = "model.weights.h5"
# An array that is larger than this and so many times the file that holds it is there to fill the memory.
_MAX_EXPANSION, _ALWAYS_FINE_BYTES = 100, 64 << 20
_MAX_NUM_ARRAYS = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredArray:
    """An array of a file, not yet read."""

    # The names of the layers from the outermost to the one that it belongs to.
    owner: tuple[str, ...]
    # Its name within that layer, or where the format has none its position.
    leaf: str | int
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray[Any, Any]]
    # Whether `owner` names layers by their class and number, because the file holds no other names.
    is_named_by_class: bool = False

    @property
    def name(self) -> str:
        return "/".join((*self.owner, str(self.leaf)))


@contextlib.contextmanager
def open_weight_file(path: pathlib.Path) -> Iterator[list[StoredArray]]:
    """The arrays of `path`, which can be read within the block.

    Raises:
        ModelError: the file is missing, damaged, of no known kind, or holds links to other files or claims of arrays
            far larger than itself.
    """
    if not path.is_file():
        raise ModelError(f"model.weights names the file {path}, which does not exist; or use bundled, imagenet or none")
    try:
        with contextlib.ExitStack() as stack:
            yield _open(path, stack)
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, safetensors.SafetensorError) as e:
        raise ModelError(f"{path} is not a readable {path.suffix} file: {' '.join(str(e).split())[:300]}") from None


def _open(path: pathlib.Path, stack: contextlib.ExitStack) -> list[StoredArray]:
    if path.suffix == ".safetensors":
        return _read_safetensors(stack.enter_context(safetensors.safe_open(path, framework="numpy")))
    if path.suffix == ".keras":
        archive = stack.enter_context(zipfile.ZipFile(path))
        return open_hdf5(stack.enter_context(weights_in_archive(archive, path)), path, stack)
    if path.suffix in (".h5", ".hdf5"):
        return open_hdf5(path, path, stack)
    raise ModelError(f"{path} is of no known kind; expected one of {', '.join(KINDS)}")


def weights_in_archive(archive: zipfile.ZipFile, path: pathlib.Path) -> IO[bytes]:
    """Raises ModelError for a zip member that claims to be far larger than its archive."""
    if _WEIGHTS_IN_KERAS_FILE not in archive.namelist():
        raise ModelError(f"{path} holds no {_WEIGHTS_IN_KERAS_FILE}, so it is not a model saved by Keras 3")
    _check_size(archive.getinfo(_WEIGHTS_IN_KERAS_FILE).file_size, path, _WEIGHTS_IN_KERAS_FILE)
    return archive.open(_WEIGHTS_IN_KERAS_FILE)


def open_hdf5(source: pathlib.Path | IO[bytes], path: pathlib.Path, stack: contextlib.ExitStack) -> list[StoredArray]:
    """The arrays of an HDF5 file of any Keras, without those of an optimizer; `path` is for its errors and its size."""
    root: Any = stack.enter_context(h5py.File(source, "r"))
    children = dict(_children(root, path))
    if "model_weights" in children or "layer_names" in root.attrs:
        return _read_old_keras(children.get("model_weights", root), path)
    return _read_keras_3(root, path)


def _read_old_keras(root: Any, path: pathlib.Path) -> list[StoredArray]:
    arrays = []
    for layer_name, group in _children(root, path):
        for weight_name, dataset in _in_written_order(group, path):
            *scopes, leaf = weight_name.split("/")
            owner = tuple(scopes) if layer_name in scopes else (layer_name, *scopes)
            arrays.append(_stored(owner, leaf.partition(":")[0], dataset))
    return arrays


def _in_written_order(group: Any, path: pathlib.Path) -> list[tuple[str, Any]]:
    """The datasets under `group` by name. Keras splits the list of their names where it is too long for one attribute,
    into weight_names0, weight_names1 and so on."""
    datasets = dict(_datasets(group, path))
    attributes = [key for key in group.attrs if re.fullmatch(r"weight_names\d*", key)]
    attributes.sort(key=lambda key: int(key.removeprefix("weight_names") or 0))
    listed = [n.decode() if isinstance(n, bytes) else str(n) for key in attributes for n in group.attrs[key]]
    return [(name, datasets[name]) for name in listed if name in datasets] or list(datasets.items())


def _read_keras_3(root: Any, path: pathlib.Path) -> list[StoredArray]:
    """The groups called vars hold the arrays of one layer each."""
    found = []
    for place, dataset in _datasets(root, path):
        *groups, last, position = ["", *place.split("/")]
        if last == "vars" and groups[1:2] != ["optimizer"] and position.isdigit():
            found.append((groups[1:], int(position), dataset))
    has_names = any("name" in root["/".join([*groups, "vars"])].attrs for groups, _, _ in found)
    arrays = []
    for groups, index, dataset in found:
        owner = _owner_by_name(root, groups) if has_names else tuple(g for g in groups if g != "layers")
        arrays.append(_stored(owner, index, dataset, is_named_by_class=not has_names))
    return sorted(arrays, key=lambda array: (array.owner, array.leaf))


def _owner_by_name(root: Any, groups: list[str]) -> tuple[str, ...]:
    names = []
    for end in range(1, len(groups) + 1):
        place = "/".join([*groups[:end], "vars"])
        if place in root and "name" in root[place].attrs:
            names.append(str(root[place].attrs["name"]))
    return tuple(names)


def _stored(owner: tuple[str, ...], leaf: str | int, dataset: Any, *, is_named_by_class: bool = False) -> StoredArray:
    def read() -> np.ndarray[Any, Any]:
        array = np.asarray(dataset[()])
        # Keras stores bfloat16, which HDF5 does not have, as 16-bit integers.
        return array.view(ml_dtypes.bfloat16) if dataset.attrs.get("dtype") == "bfloat16" else array

    return StoredArray(
        owner=owner, leaf=leaf, shape=tuple(dataset.shape), read=read, is_named_by_class=is_named_by_class
    )


def _children(group: Any, path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """Groups and datasets right under `group`. Raises ModelError for a link, whatever it leads to."""
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ModelError(
                f"{path} links {group.name}/{name} to another place, maybe another file; only files that hold their "
                "arrays themselves are read"
            )
        yield name, group[name]


def _datasets(group: Any, path: pathlib.Path, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > 64:
        raise ModelError(f"{path} nests its groups more than 64 deep; it is not a file of weights")
    for num_found, (name, child) in enumerate(_children(group, path)):
        if num_found > _MAX_NUM_ARRAYS:
            raise ModelError(f"{path} holds more than {_MAX_NUM_ARRAYS:,} entries in one group")
        if isinstance(child, h5py.Group):
            yield from ((f"{name}/{rest}", dataset) for rest, dataset in _datasets(child, path, depth + 1))
        elif child.external or child.is_virtual:
            raise ModelError(f"{path} keeps {child.name} in another file; only files that hold their arrays are read")
        elif child.dtype.kind in "fiub":
            _check_size(child.nbytes, path, child.name)
            yield name, child


def _check_size(num_bytes: int, path: pathlib.Path, name: str) -> None:
    if num_bytes > max(_ALWAYS_FINE_BYTES, _MAX_EXPANSION * path.stat().st_size):
        raise ModelError(
            f"{path} has {path.stat().st_size:,} bytes and claims to hold {num_bytes:,} bytes of {name}; it is refused"
        )


def _read_safetensors(file: Any) -> list[StoredArray]:
    arrays = []
    for key in file.keys():  # noqa: SIM118
        *owner, leaf = re.sub(r"^\d+:", "", key).split("/")
        shape = tuple(file.get_slice(key).get_shape())
        arrays.append(StoredArray(owner=tuple(owner), leaf=leaf, shape=shape, read=_reader(file, key)))
    return arrays


def _reader(file: Any, key: str) -> Callable[[], np.ndarray[Any, Any]]:
    return lambda: np.asarray(file.get_tensor(key))
