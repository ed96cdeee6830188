"""The arrays in a file of weights, by the names of their layers. Nothing in a file is ever run.

    .weights.h5     Keras 3: layers/<class>_<n>/vars/<i>, with the layer's name as an attribute of vars (since 3.7)
    .h5             older Keras: <layer>/<layer>/<weight>:0, in a whole saved model under model_weights/
    .keras          Keras 3's saved model: a zip file with a model.weights.h5
    .safetensors    of a run: <position>:<layer>/<weight>

Arrays are read one by one, when someone asks for one of the shape that it has: what a file only claims costs nothing.
"""

import contextlib
import dataclasses
import math
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

import h5py
import ml_dtypes
import numpy as np
import safetensors

from trainer.errors import ModelError
from trainer.model.files.saved_archive import open_archive, open_weights, read_config
from trainer.model.files.saved_config import SAVE_WEIGHTS_ALONE, check_config, check_no_code, parse_config

KINDS = (".weights.h5", ".h5", ".keras", ".safetensors")
# An array that is larger than this and so many times the file that holds it is there to fill the memory.
_MAX_EXPANSION, _ALWAYS_FINE_BYTES = 100, 64 << 20
_MAX_NUM_ENTRIES = 100_000
# What the readers of these formats raise where a file is not as it says.
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    RuntimeError,
    MemoryError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
    safetensors.SafetensorError,
)


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
    """Open `path` and return its arrays, which can be read within the block.

    Raises:
        ModelError: the file is missing, damaged, of no known kind, or holds links to other files or claims of arrays
            far larger than itself.
    """
    if not path.is_file():
        raise ModelError(f"model.weights names the file {path}, which does not exist; or use bundled, imagenet or none")
    with contextlib.ExitStack() as stack:
        try:
            arrays = _open(path, stack)
        except UNREADABLE as e:
            raise ModelError(f"{path} is not a readable {path.suffix} file: {' '.join(str(e).split())[:300]}") from None
        yield [dataclasses.replace(array, read=_reading(array, path)) for array in arrays]


def _reading(array: StoredArray, path: pathlib.Path) -> Callable[[], np.ndarray[Any, Any]]:
    def read() -> np.ndarray[Any, Any]:
        try:
            return array.read()
        except UNREADABLE as e:
            raise ModelError(f"{array.name} of {path} cannot be read: {' '.join(str(e).split())[:300]}") from None

    return read


def _open(path: pathlib.Path, stack: contextlib.ExitStack) -> list[StoredArray]:
    if path.suffix == ".safetensors":
        return _read_safetensors(stack.enter_context(safetensors.safe_open(path, framework="numpy")))
    if path.suffix == ".keras":
        archive = stack.enter_context(open_archive(path))
        check_config(read_config(archive), path, fix=SAVE_WEIGHTS_ALONE)
        return open_hdf5(stack.enter_context(open_weights(archive)), path, stack)
    if path.suffix in (".h5", ".hdf5"):
        return open_hdf5(path, path, stack)
    raise ModelError(f"{path} is of no known kind; expected one of {', '.join(KINDS)}")


def open_hdf5(source: pathlib.Path | IO[bytes], path: pathlib.Path, stack: contextlib.ExitStack) -> list[StoredArray]:
    """Return the arrays of an HDF5 file of any Keras, without an optimizer's; `path` is for errors and its size."""
    root: Any = stack.enter_context(h5py.File(source, "r"))
    if "model_config" in root.attrs:
        check_no_code(parse_config(_attribute(root, "model_config", path)), path)
    datasets = dict(_Walk(path).datasets(root))
    if any(place.startswith("model_weights/") for place in datasets):
        return _read_old_keras(root["model_weights"], "model_weights/", datasets, path)
    if "layer_names" in root.attrs:
        return _read_old_keras(root, "", datasets, path)
    return _read_keras_3(root, datasets, path)


def _read_old_keras(root: Any, above: str, datasets: dict[str, Any], path: pathlib.Path) -> list[StoredArray]:
    by_layer: dict[str, dict[str, Any]] = {}
    for place, dataset in datasets.items():
        layer_name, _, weight_name = place.removeprefix(above).partition("/")
        if place.startswith(above) and weight_name:
            by_layer.setdefault(layer_name, {})[weight_name] = dataset
    arrays = []
    for layer_name, weights in by_layer.items():
        for weight_name, dataset in _in_written_order(root[layer_name], weights, path):
            *scopes, leaf = weight_name.split("/")
            owner = tuple(scopes) if layer_name in scopes else (layer_name, *scopes)
            arrays.append(_stored(owner, leaf.partition(":")[0], dataset))
    return arrays


def _in_written_order(group: Any, datasets: dict[str, Any], path: pathlib.Path) -> list[tuple[str, Any]]:
    """Return the datasets under `group` by name, in the order in which Keras wrote them.

    Keras splits a list of names that is too long for one attribute into weight_names0, weight_names1 and so on.
    """
    attributes = [key for key in group.attrs if re.fullmatch(r"weight_names\d*", key)]
    attributes.sort(key=lambda key: int(key.removeprefix("weight_names") or 0))
    listed = [
        n.decode() if isinstance(n, bytes) else str(n) for key in attributes for n in _attribute(group, key, path)
    ]
    return [(name, datasets[name]) for name in listed if name in datasets] or list(datasets.items())


def _read_keras_3(root: Any, datasets: dict[str, Any], path: pathlib.Path) -> list[StoredArray]:
    """Read the groups called vars, each of which holds the arrays of one layer."""
    found = []
    for place, dataset in datasets.items():
        *groups, last, position = ["", *place.split("/")]
        if last == "vars" and groups[1:2] != ["optimizer"] and position.isdigit():
            found.append((groups[1:], int(position), dataset))
    has_names = any("name" in root["/".join([*groups, "vars"])].attrs for groups, _, _ in found)
    arrays = []
    for groups, index, dataset in found:
        owner = _owner_by_name(root, groups, path) if has_names else tuple(g for g in groups if g != "layers")
        arrays.append(_stored(owner, index, dataset, is_named_by_class=not has_names))
    return sorted(arrays, key=lambda array: (array.owner, array.leaf))


def _owner_by_name(root: Any, groups: list[str], path: pathlib.Path) -> tuple[str, ...]:
    names = []
    for end in range(1, len(groups) + 1):
        place = "/".join([*groups[:end], "vars"])
        if place in root and "name" in root[place].attrs:
            names.append(str(_attribute(root[place], "name", path)))
    return tuple(names)


def _stored(owner: tuple[str, ...], leaf: str | int, dataset: Any, *, is_named_by_class: bool = False) -> StoredArray:
    def read() -> np.ndarray[Any, Any]:
        array = np.asarray(dataset[()])
        # Keras stores bfloat16, which HDF5 does not have, as 16-bit integers.
        return array.view(ml_dtypes.bfloat16) if dataset.attrs.get("dtype") == "bfloat16" else array

    return StoredArray(
        owner=owner, leaf=leaf, shape=tuple(dataset.shape), read=read, is_named_by_class=is_named_by_class
    )


def _attribute(owner: Any, key: str, path: pathlib.Path) -> Any:
    """Strings of any length may all be one and the same in the file, so their number must not be what multiplies it."""
    stored = owner.attrs.get_id(key)
    if stored.dtype.kind == "O" and math.prod(stored.shape) > 1:
        _check_size(math.prod(stored.shape) * path.stat().st_size, path, f"the attribute {key}")
    return owner.attrs[key]


class _Walk:
    """A walk over all datasets of numbers under a group, each seen once.

    Raises ModelError for links, whatever they lead to, for arrays that lie elsewhere or are far larger than the file,
    and for groups that are entered by two ways.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._seen: set[int] = set()

    def datasets(self, group: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
        if depth > 64:
            raise ModelError(f"{self._path} nests its groups more than 64 deep; it is not a file of weights")
        for name in group:
            child = self._child(group, name)
            if isinstance(child, h5py.Group):
                yield from ((f"{name}/{rest}", dataset) for rest, dataset in self.datasets(child, depth + 1))
            elif isinstance(child, h5py.Dataset) and self._is_numbers(child):
                yield name, child

    def _child(self, group: Any, name: str) -> Any:
        place = f"{group.name.rstrip('/')}/{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ModelError(
                f"{self._path} links {place} to another place, maybe another file; only files that hold their "
                "arrays themselves are read"
            )
        child = group[name]
        address = h5py.h5o.get_info(child.id).addr
        if address in self._seen:
            raise ModelError(
                f"{self._path} holds {place} under two names; only files that hold each array once are read"
            )
        self._seen.add(address)
        if len(self._seen) > _MAX_NUM_ENTRIES:
            raise ModelError(f"{self._path} holds more than {_MAX_NUM_ENTRIES:,} entries; it is not a file of weights")
        return child

    def _is_numbers(self, dataset: Any) -> bool:
        if dataset.external or dataset.is_virtual:
            raise ModelError(
                f"{self._path} keeps {dataset.name} in another file; only files that hold their arrays are read"
            )
        if dataset.dtype.kind not in "fiub":
            return False
        _check_size(dataset.nbytes, self._path, dataset.name)
        # A piece is unpacked as a whole, however little of it the array has.
        _check_size(
            math.prod(dataset.chunks or ()) * dataset.dtype.itemsize, self._path, f"one piece of {dataset.name}"
        )
        return True


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
