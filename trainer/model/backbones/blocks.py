"""Split a backbone into its blocks, so that a part of it such as its last three blocks can be trained.

The names that networks give their layers say where a block ends where they say it; the graph says it otherwise: at a
cut, a place that a single tensor passes.
"""

import dataclasses
import itertools
import re
from typing import Any

import keras

from trainer.system.private_api.keras_graph import as_functional, calls_of

# In order: the first that is found in a layer's name names its block. ResNet, DenseNet (conv2_block1_), ConvNeXt and
# the ResNets of keras-hub (stage_0_block_1_, stack0_block1_), MobileNetV2 and V3 (expanded_conv_3_), MobileNet
# (conv_dw_1, conv_pw_1_bn), Inception (mixed9_1, mixed_5b), NASNet (normal_concat_3), and all that say "block":
# block1_conv1, block_3_expand, block2a_bn, block35_1_conv, blocks_0_.
_BLOCK_NAMES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?:conv|stage|stack)_?\d+_block_?\d+",
        r"(?P<key>expanded_conv(?:_\d+)?)_",
        r"^conv_(?:dw|pw|pad)_(?P<key>\d+)",
        r"^(?P<key>mixed_?\d+[a-z]?)",
        r"^(?:normal|reduction)_concat_(?P<key>\w+)$",
        r"downsampling_block_\d+",
        r"blocks?_?\d+[a-z]?(?:_\d+)?(?=_|$)",
    )
)


@dataclasses.dataclass
class _Step:
    """An operation of the graph, in an order in which it can be computed."""

    operation: Any
    outputs: list[Any]
    inputs: list[int]  # positions of the steps that it reads


@dataclasses.dataclass
class _Segment:
    """Consecutive steps; `key` is the name of their block, where they have one."""

    steps: list[_Step]
    key: str | None

    @property
    def has_kernel(self) -> bool:
        return any(len(w.shape) > 1 for step in self.steps for w in getattr(step.operation, "weights", ()))


def blocks_of(network: Any) -> list[list[Any]]:
    """Split a functional or sequential Keras model into blocks of layers, from input to output.

    Every layer is in exactly one block, and every block but that of a network without weights holds a kernel. Layers
    before the first named block are the stem, those after the last one the top; layers without a kernel join their
    neighbours. A network nested in `network` is opened.

    Raises ValueError for a subclassed model, which has no graph.
    """
    segments = _split_at_cuts(_steps_of(network))
    if any(segment.key for segment in segments):
        segments = _merge_by_name(segments)
    blocks = [_layers_of(segment, network) for segment in _give_kernels(segments)]
    return [block for opened in map(_open_nested, blocks) for block in opened if block]


def cuts_of(network: Any) -> list[tuple[Any, Any]]:
    """Return each operation whose output alone all later ones read, with that output, from input to output.

    Raises ValueError as `blocks_of`.
    """
    steps = _steps_of(network)
    return [(steps[i].operation, steps[i].outputs[0]) for i in _cuts(steps) if len(steps[i].outputs) == 1]


def _steps_of(network: Any) -> list[_Step]:
    calls = calls_of(network)
    position = {id(tensor): i for i, call in enumerate(calls) for tensor in call.outputs}
    return [_Step(call.operation, call.outputs, [position[id(tensor)] for tensor in call.inputs]) for call in calls]


def _split_at_cuts(steps: list[_Step]) -> list[_Segment]:
    segments, start = [], 0
    for cut in _cuts(steps):
        segments += _split_by_name(steps, start, cut + 1)
        start = cut + 1
    return segments


def _cuts(steps: list[_Step]) -> list[int]:
    """Return the positions of the steps whose output is all that later steps read of them and those before."""
    last_reader = list(range(len(steps)))
    for i, step in enumerate(steps):
        for j in step.inputs:
            last_reader[j] = i
    cuts, alive_until = [], 0
    for i in range(len(steps)):
        if alive_until <= i:
            cuts.append(i)
        alive_until = max(alive_until, last_reader[i])
    return cuts


def _name_of_block(operation: Any) -> str | None:
    for pattern in _BLOCK_NAMES:
        if found := pattern.search(operation.name):
            return found.groupdict().get("key") or found.group()
    return None


def _split_by_name(steps: list[_Step], start: int, end: int) -> list[_Segment]:
    """Return one segment, or one for each block where blocks are interleaved (NASNet reads the last two).

    Then a step belongs to the first block whose end depends on it.
    """
    names = [_name_of_block(step.operation) for step in steps[start:end]]
    keys = list(dict.fromkeys(name for name in names if name))
    if len(keys) < 2:
        return [_Segment(steps[start:end], keys[0] if keys else None)]
    ends = {key: start + max(i for i, name in enumerate(names) if name == key) for key in keys}
    segments, taken = [], set(range(start))
    for key in sorted(keys, key=lambda key: ends[key]):
        members = _ancestors(steps, ends[key], taken)
        taken |= members
        segments.append(_Segment([steps[i] for i in sorted(members)], key))
    segments[-1].steps += [steps[i] for i in range(start, end) if i not in taken]
    return segments


def _ancestors(steps: list[_Step], end: int, taken: set[int]) -> set[int]:
    found, waiting = set(), [end]
    while waiting:
        i = waiting.pop()
        if i not in taken and i not in found:
            found.add(i)
            waiting += steps[i].inputs
    return found


def _merge_by_name(segments: list[_Segment]) -> list[_Segment]:
    """Join neighbours of one name, with what has no name between them; join other runs without a name."""
    runs = [_joined(list(group), key) for key, group in itertools.groupby(segments, key=lambda segment: segment.key)]
    merged: list[_Segment] = []
    for run in runs:
        if run.key and len(merged) > 1 and merged[-1].key is None and merged[-2].key == run.key:
            between = merged.pop()
            merged[-1] = _joined([merged[-1], between, run], run.key)
        else:
            merged.append(run)
    return merged


def _give_kernels(segments: list[_Segment]) -> list[_Segment]:
    """Join segments without kernel and name to the one before, or at the start to the one after."""
    merged: list[_Segment] = []
    for segment in segments:
        last = merged[-1] if merged else None
        if last is not None and (not (segment.key or segment.has_kernel) or not (last.key or last.has_kernel)):
            merged[-1] = _joined([last, segment], last.key or segment.key)
        else:
            merged.append(segment)
    return merged


def _joined(segments: list[_Segment], key: str | None) -> _Segment:
    return _Segment([step for segment in segments for step in segment.steps], key)


def _layers_of(segment: _Segment, network: Any) -> list[Any]:
    """Return the layers of a segment in the order of computation, without operations that are no layers."""
    layers = {id(layer) for layer in as_functional(network).layers}
    operations = dict.fromkeys(step.operation for step in segment.steps)
    return [operation for operation in operations if id(operation) in layers]


def _open_nested(block: list[Any]) -> list[list[Any]]:
    """Return `block`, or the blocks of a nested network that has all of its weights."""
    networks = [layer for layer in block if isinstance(layer, keras.Model) and not isinstance(layer, keras.Sequential)]
    if len(networks) != 1 or any(layer.weights for layer in block if layer is not networks[0]):
        return [block]
    at = block.index(networks[0])
    blocks = blocks_of(networks[0])
    blocks[0] = block[:at] + blocks[0]
    blocks[-1] = blocks[-1] + block[at + 1 :]
    return blocks
