"""Which layers belong together when a backbone is unfrozen block by block."""

from typing import Any

import keras
import pytest

from trainer.model.backbones.blocks import blocks_of
from trainer.model.backbones.registry import find_backbone
from trainer.system.private_api.keras_graph import call_that_made, calls_of


def _network(name: str) -> Any:
    backbone = find_backbone(name)
    with keras.StatelessScope():  # the graph alone: no weights are made
        return backbone.build((backbone.min_image_size_px,) * 2 + (3,))


def _names(blocks: list[list[Any]]) -> list[list[str]]:
    return [[layer.name for layer in block] for block in blocks]


# The counts of the papers, with a stem and a top where the network has a kernel there.
@pytest.mark.parametrize(
    ("name", "num_blocks", "first", "last"),
    [
        ("vgg16", 5, "block1_conv1", "block5_conv1"),
        ("mobilenet", 1 + 13, "conv1", "conv_dw_13"),
        ("mobilenet_v2", 1 + 17 + 1, "Conv1", "Conv_1"),
        ("mobilenet_v3_small", 1 + 11 + 1, "conv", "conv_1"),
        ("resnet50", 1 + 16, "conv1_conv", "conv5_block3_1_conv"),
        ("resnet50_v2", 1 + 16, "conv1_conv", "conv5_block3_1_conv"),
        ("efficientnet_b0", 1 + 16 + 1, "stem_conv", "top_conv"),
        ("efficientnet_lite0", 1 + 16 + 1, "_conv_stem", "_conv_head"),
        ("xception", 14, "block1_conv1", "block14_sepconv1"),
        ("densenet121", 1 + 6 + 12 + 24 + 16 + 3, "conv1_conv", "conv5_block16_1_conv"),
        ("convnext_tiny", 1 + 18 + 3, "convnext_tiny_stem", "convnext_tiny_stage_3_block_2_depthwise_conv"),
        ("inception_v3", 1 + 11, None, None),
        ("nasnet_mobile", 1 + 2 + 12 + 2, "stem_conv1", None),
    ],
)
def test_a_backbone_has_the_blocks_of_its_paper(
    name: str, num_blocks: int, first: str | None, last: str | None
) -> None:
    network = _network(name)
    blocks = blocks_of(network)
    assert len(blocks) == num_blocks
    assert sorted(layer.name for block in blocks for layer in block) == sorted(layer.name for layer in network.layers)
    assert first is None or first in _names(blocks)[0]
    assert last is None or last in _names(blocks)[-1]
    for block in blocks:
        assert any(len(w.shape) > 1 for layer in block for w in layer.weights), [layer.name for layer in block]


def test_no_block_reads_a_later_one() -> None:
    network = _network("nasnet_mobile")  # its cells read the last two
    place = {layer.name: i for i, block in enumerate(blocks_of(network)) for layer in block}
    calls = calls_of(network)
    for call in calls:
        for tensor in call.inputs:
            assert place[call_that_made(tensor, calls).operation.name] <= place[call.operation.name]


def test_a_network_without_telling_names_is_cut_where_a_single_tensor_passes() -> None:
    inputs = keras.Input((16, 16, 3), name="pixels")
    x = keras.layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    x = skip = keras.layers.ReLU(name="first_active")(x)
    x = keras.layers.Conv2D(4, 3, padding="same", name="left")(x)
    x = keras.layers.Conv2D(4, 3, padding="same", name="right")(x)
    x = keras.layers.Add(name="sum")([x, skip])
    x = keras.layers.MaxPooling2D(name="pool")(x)
    outputs = keras.layers.Conv2D(8, 3, name="last")(x)
    network = keras.Model(inputs, outputs)
    assert _names(blocks_of(network)) == [
        ["pixels", "first", "first_active"],
        ["left", "right", "sum", "pool"],
        ["last"],
    ]


def test_a_sequential_network_has_a_block_for_each_kernel() -> None:
    layers = [
        keras.Input((8, 8, 3)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(4, 3, name="one"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Conv2D(4, 3, name="two"),
    ]
    names = _names(blocks_of(keras.Sequential(layers)))
    assert [block[-1] for block in names] == ["norm", "two"]


def test_a_network_inside_a_network_is_opened() -> None:
    inner = _network("vgg16")
    inputs = keras.Input((32, 32, 3), name="pixels")
    with keras.StatelessScope():
        outer = keras.Model(inputs, inner(keras.layers.Rescaling(1 / 255, name="scale")(inputs)))
    names = _names(blocks_of(outer))
    assert len(names) == 5
    assert names[0][:2] == ["pixels", "scale"]
    assert names[-1][-1] == "block5_pool"


def test_a_network_without_a_graph_is_refused() -> None:
    class Subclassed(keras.Model):  # type: ignore[misc]
        pass

    with pytest.raises(ValueError, match="no graph"):
        blocks_of(Subclassed())
