"""Read the tensors of a legacy PyTorch checkpoint (`.pth`, before the zip format) without PyTorch and without trust.

Format: `torch.serialization._legacy_save` of PyTorch 1.x: four pickles (magic number, protocol, system info, the
object), a pickled list of storage keys, then for each key an int64 count and the raw little-endian elements.
Unpickling is restricted to the names that a state dict of plain tensors needs, so that no code in it can run.
"""

import collections
import dataclasses
import pathlib
import pickle
from typing import IO, Any

import numpy as np

from trainer.errors import ModelError

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_STORAGE_DTYPES = {"FloatStorage": np.dtype("<f4"), "HalfStorage": np.dtype("<f2"), "LongStorage": np.dtype("<i8")}


@dataclasses.dataclass(frozen=True)
class _StoredTensor:
    storage_key: str
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state_dict(path: pathlib.Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return every tensor of the state dict at `path` by its name, C-contiguous.

    Raises:
        ModelError: the file is of another format, is truncated, or asks for anything but tensors.
    """
    try:
        with open(path, "rb") as f:
            if _StateDictUnpickler(f).load() != _MAGIC_NUMBER:
                raise pickle.UnpicklingError("the magic number is not PyTorch's")
            _protocol, _system = _StateDictUnpickler(f).load(), _StateDictUnpickler(f).load()
            tensors, keys = _StateDictUnpickler(f).load(), _StateDictUnpickler(f).load()
            dtypes = {t.storage_key: t.dtype for t in tensors.values()}
            storages = {key: _read_storage(f, dtypes[key]) for key in keys}
            return {name: _view(tensor, storages[tensor.storage_key]) for name, tensor in tensors.items()}
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, AttributeError, TypeError) as e:
        raise ModelError(f"{path} is not a legacy PyTorch state dict of plain tensors: {e}") from None


class _StateDictUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _STORAGE_DTYPES:
            return name
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not admitted")

    def persistent_load(self, pid: Any) -> Any:
        kind, storage_type, key, _location, _num_elements, _view_metadata = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"it refers to a {kind!r}, which is not admitted")
        return key, _STORAGE_DTYPES[storage_type]


def _rebuild_tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> _StoredTensor:
    key, dtype = storage
    return _StoredTensor(key, dtype, offset, tuple(shape), tuple(strides))


def _read_storage(f: IO[bytes], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    num_elements = int.from_bytes(f.read(8), "little")
    content = f.read(num_elements * dtype.itemsize)
    if len(content) != num_elements * dtype.itemsize:
        raise EOFError("it is truncated")
    return np.frombuffer(content, dtype)


def _view(tensor: _StoredTensor, storage: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    # The tensors are not all contiguous: the strides decide, and they must stay inside the storage.
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if min(tensor.shape, default=1) < 1 or min(tensor.strides, default=0) < 0 or not 0 <= last < len(storage):
        raise ValueError(f"a tensor of shape {tensor.shape} does not lie inside its storage")
    strides_bytes = [s * storage.itemsize for s in tensor.strides]
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides_bytes).copy()
