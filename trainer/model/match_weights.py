"""Match the arrays of a weight file with the variables of a network, by the names of layers and by shape."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple

import keras
import numpy as np
import pydantic

from trainer.errors import ModelError
from trainer.model.files.weight_files import StoredArray
from trainer.system.private_api.keras_graph import all_layers, own_variables

SCHEMA_VERSION: Final = 1
MIN_FIT = 0.9
Path = tuple[str, ...]


class WeightsReport(pydantic.BaseModel):
    """`RUN/weights.json`: which arrays of a weight file fitted the backbone, by their names."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    file: str
    backbone: str
    num_parameters: int
    num_parameters_loaded: int
    loaded: list[str]
    # Of the backbone, that the file has nothing for.
    missing: list[str]
    # Of the file, that the backbone has no place for, such as those of a head that was not kept.
    left_over: list[str]
    other_shape: list[str]

    def with_head(self, pairs: list[tuple[Any, StoredArray]]) -> "WeightsReport":
        """Return the report with a head whose arrays were taken as well."""
        size, taken = sum(_size(variable) for variable, _ in pairs), [array.name for _, array in pairs]
        return self.model_copy(
            update={
                "num_parameters": self.num_parameters + size,
                "num_parameters_loaded": self.num_parameters_loaded + size,
                "loaded": self.loaded + [variable.path for variable, _ in pairs],
                "left_over": [name for name in self.left_over if name not in taken],
            }
        )

    @property
    def share(self) -> float:
        return self.num_parameters_loaded / max(1, self.num_parameters)

    def summary(self) -> str:
        """Return the report on one line."""
        parts = [f"{len(self.loaded)} arrays of {self.file} fit {self.backbone} ({self.share:.1%} of its parameters)"]
        for words, names in (
            ("missing", self.missing),
            ("of another shape", self.other_shape),
            ("left over", self.left_over),
        ):
            if names:
                parts.append(f"{len(names)} {words} ({_first(names)})")
        return "; ".join(parts)


@dataclasses.dataclass
class _Owner:
    """A layer with variables of its own."""

    path: Path
    variables: list[Any]


class Match(NamedTuple):
    """The variables of a network with their arrays in a file, and the arrays that it has no place for."""

    pairs: list[tuple[Any, StoredArray]]
    left_over: list[StoredArray]
    report: WeightsReport


def match(network: Any, arrays: list[StoredArray], *, file: str, backbone: str) -> Match:
    """Find the array of each variable of `network`.

    A layer takes the arrays of the layer of its name; names that Keras makes up (conv2d_17) count by their order.
    Layers around the network in the file, such as a whole classifier, do not matter.

    Raises:
        ModelError: less than 90% of the parameters of `network` have an array in the file.
    """
    owners = _owners(network)
    by_class = bool(arrays) and all(array.is_named_by_class for array in arrays)
    place = _PlaceOfOwner(network, owners, by_class=by_class)
    found: dict[int, tuple[Any, StoredArray]] = {}
    left_over: list[StoredArray] = []
    other_shape: list[str] = []
    for owner, group in place.matched(arrays):
        for array, variable in _pair(owner, group):
            if variable is None or id(variable) in found:
                left_over.append(array)
            elif array.shape != tuple(variable.shape):
                other_shape.append(f"{variable.path} {list(array.shape)}, not {list(variable.shape)}")
            else:
                found[id(variable)] = (variable, array)
    variables = [variable for owner in owners for variable in owner.variables]
    report = WeightsReport(
        file=file,
        backbone=backbone,
        num_parameters=sum(_size(v) for v in variables),
        num_parameters_loaded=sum(_size(v) for v in variables if id(v) in found),
        loaded=[variable.path for variable, _ in found.values()],
        missing=[v.path for v in variables if id(v) not in found and not _has_other_shape(v, other_shape)],
        left_over=[array.name for array in left_over],
        other_shape=other_shape,
    )
    _check(report)
    return Match(list(found.values()), left_over, report)


def match_head(left_over: list[StoredArray], layers: list[Any]) -> list[tuple[Any, StoredArray]] | None:
    """Find the arrays of the `layers` of a head among those that are not of its backbone; None where that is not clear.

    A layer takes the arrays of the layer of its name, or of the only one of its shapes; with that, all kernels of the
    file must have their place, since otherwise its head is of other layers.
    """
    groups: dict[Path, list[StoredArray]] = collections.defaultdict(list)
    for array in left_over:
        groups[array.owner].append(array)
    pairs: list[tuple[Any, StoredArray]] = []
    for layer in layers:
        fitting = {owner: pairs_of for owner, group in groups.items() if (pairs_of := _fit_layer(layer, group))}
        named = [owner for owner in fitting if owner[-1:] == (layer.name,)]
        chosen = named or list(fitting)
        if len(chosen) != 1:
            return None
        pairs += fitting[chosen[0]]
        del groups[chosen[0]]
    return None if any(len(array.shape) > 1 for group in groups.values() for array in group) else pairs


def _fit_layer(layer: Any, group: list[StoredArray]) -> list[tuple[Any, StoredArray]] | None:
    owner = _Owner((), own_variables(layer))
    pairs = [(variable, array) for array, variable in _pair(owner, group) if variable is not None]
    fits = all(array.shape == tuple(variable.shape) for variable, array in pairs)
    return pairs if fits and len(pairs) == len(group) == len(owner.variables) else None


def assign(pairs: list[tuple[Any, StoredArray]]) -> None:
    """Set each variable to its array; none where one cannot be read."""
    values = [array.read() for _, array in pairs]
    for (variable, _), value in zip(pairs, values, strict=True):
        variable.assign(value)


def _check(report: WeightsReport) -> None:
    if report.share >= MIN_FIT:
        return
    details = []
    if report.missing:
        details.append(f"it has nothing for {_first(report.missing)}")
    if report.other_shape:
        details.append(f"of another shape are {_first(report.other_shape)}")
    if report.left_over:
        details.append(f"it holds {_first(report.left_over)}")
    raise ModelError(
        f"{report.file} does not fit {report.backbone}: it has {report.share:.0%} of its parameters, and at least "
        f"{MIN_FIT:.0%} are needed ({'; '.join(details)}); use the weights of {report.backbone}, or set model.backbone "
        "to the network that the file is of"
    )


class _PlaceOfOwner:
    """An index from a path of names in a file to the layer of the network that it means."""

    def __init__(self, network: Any, owners: list[_Owner], *, by_class: bool) -> None:
        self._made_up = set() if by_class else _made_up_names(network)
        if by_class:
            by_variable = _paths_by_class(network)
            paths = {owner.path: by_variable.get(id(owner.variables[0]), owner.path) for owner in owners}
        else:
            paths = self._canonical(owner.path for owner in owners)
        self._owners = {paths[owner.path]: owner for owner in owners}

    def matched(self, arrays: list[StoredArray]) -> Iterator[tuple[_Owner | None, list[StoredArray]]]:
        groups: dict[Path, list[StoredArray]] = collections.defaultdict(list)
        for array in arrays:
            groups[array.owner].append(array)
        canonical = self._canonical(groups)
        for path, group in groups.items():
            wanted = canonical[path]
            # What is around the network in the file comes first in the path.
            tails = (wanted[start:] for start in range(len(wanted)))
            yield next((self._owners[tail] for tail in tails if tail in self._owners), None), group

    def _canonical(self, paths: Iterable[Path]) -> dict[Path, Path]:
        """Return each path with conv2d_17 replaced by conv2d#4, where it is the fifth conv2d in its network."""
        paths = list(paths)
        numbers: dict[tuple[Path, str], set[int]] = collections.defaultdict(set)
        for path in paths:
            for i, name in enumerate(path):
                if made_up := self._split(name):
                    numbers[path[:i], made_up[0]].add(made_up[1])

        def rename(path: Path, i: int) -> str:
            made_up = self._split(path[i])
            if made_up is None:
                return path[i]
            base, number = made_up
            return f"{base}#{sorted(numbers[path[:i], base]).index(number)}"

        return {path: tuple(rename(path, i) for i in range(len(path))) for path in paths}

    def _split(self, name: str) -> tuple[str, int] | None:
        base, number = re.fullmatch(r"(.*?)(?:_(\d+))?", name).groups()  # type: ignore[union-attr]
        return (base, int(number or 0)) if base in self._made_up else None


def _owners(network: Any) -> list[_Owner]:
    owners = []
    for layer in all_layers(network):
        if variables := own_variables(layer):
            owners.append(_Owner(tuple(variables[0].path.split("/")[:-1]), variables))
    return owners


def _made_up_names(network: Any) -> set[str]:
    """Return the names that Keras gave to layers that nobody named: their class, in small letters."""
    named = [(_class_name(layer), layer.name) for layer in all_layers(network)]
    return {class_name for class_name, name in named if re.fullmatch(rf"{re.escape(class_name)}(_\d+)?", name)}


def _class_name(layer: Any) -> str:
    # Some classes of this project stand in for those of Keras.
    name = "BatchNormalization" if isinstance(layer, keras.layers.BatchNormalization) else type(layer).__name__
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _paths_by_class(network: Any, above: Path = ()) -> dict[int, Path]:
    """Return the path of each layer by class and order, as in older files of Keras 3, by its first variable's id."""
    counts: collections.Counter[str] = collections.Counter()
    paths: dict[int, Path] = {}
    for layer in network.layers:
        name = _class_name(layer)
        path = (*above, f"{name}_{counts[name]}" if counts[name] else name)
        counts[name] += 1
        if hasattr(layer, "layers"):
            paths |= _paths_by_class(layer, path)
        elif layer.weights:
            own = own_variables(layer)
            paths |= {id(own[0]): path} if own else {}
    return paths


def _pair(owner: _Owner | None, group: list[StoredArray]) -> Iterator[tuple[StoredArray, Any | None]]:
    """Pair each array with its variable: by name, by position in files without names, by order where they differ."""
    if owner is None:
        yield from ((array, None) for array in group)
        return
    by_name = {variable.name: variable for variable in owner.variables}
    if any(array.leaf in by_name for array in group):
        yield from ((array, by_name.get(str(array.leaf))) for array in group)
    elif all(isinstance(array.leaf, int) for array in group):
        by_position = dict(enumerate(owner.variables))
        yield from ((array, by_position.get(int(array.leaf))) for array in group)
    elif len(group) == len(owner.variables):
        yield from zip(group, owner.variables, strict=True)
    else:
        yield from ((array, None) for array in group)


def _has_other_shape(variable: Any, other_shape: list[str]) -> bool:
    return any(entry.startswith(f"{variable.path} [") for entry in other_shape)


def _size(variable: Any) -> int:
    return int(np.prod(variable.shape))


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
