"""Which layers quantisation spares, and how many bits the weights of an int8 ONNX file have."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.convert.onnx_precision import to_int8
from export.convert.quantization import most_sensitive, smallest

LAYERS = "abcdefgh"
SIZE_PX, NUM_CHANNELS = 6, 16


@given(
    decibels=st.dictionaries(st.sampled_from(LAYERS), st.floats(-20, 60), min_size=1),
    num_weights=st.dictionaries(st.sampled_from(LAYERS), st.integers(0, 1000)),
    readers=st.dictionaries(st.sampled_from(LAYERS), st.sets(st.sampled_from(LAYERS))),
    share=st.floats(0, 0.99),
)
def test_no_more_than_the_share_of_the_weights_is_spared_and_the_worst_first(
    decibels: dict[str, float], num_weights: dict[str, int], readers: dict[str, set[str]], share: float
) -> None:
    spared = set(most_sensitive(decibels, share, readers=readers, num_weights=num_weights))
    assert sum(num_weights.get(layer, 0) for layer in spared) <= share * sum(num_weights.values())
    ranked = sorted(decibels, key=lambda layer: (decibels[layer], layer))
    num_considered = max(1, int(np.ceil(share * len(ranked))))
    assert spared <= {r for layer in ranked[:num_considered] for r in (layer, *readers.get(layer, ()))}
    # One that could have been spared beside the others was.
    for layer in ranked[:num_considered]:
        with_it = spared | {layer, *readers.get(layer, ())}
        fits = sum(num_weights.get(one, 0) for one in with_it) <= share * sum(num_weights.values())
        assert with_it == spared or not fits


@given(st.dictionaries(st.sampled_from(LAYERS), st.integers(0, 1000)), st.floats(0, 0.99))
def test_the_smallest_are_as_many_as_fit_into_the_share(num_weights: dict[str, int], share: float) -> None:
    ranked = sorted(num_weights, key=lambda name: (num_weights[name], name))
    chosen = smallest(num_weights, share)
    assert chosen == set(ranked[: len(chosen)])
    sums = np.cumsum([num_weights[name] for name in ranked])
    assert all(total <= share * sums[-1] for total in sums[: len(chosen)])
    assert len(chosen) == len(ranked) or sums[len(chosen)] > share * sums[-1]


def _one_convolution(kernel: np.ndarray, groups: int) -> bytes:
    """`images` [n, size, size, channels] through one convolution without padding to `probabilities`."""
    num_outputs, _, height, _ = kernel.shape
    nodes = [
        helper.make_node("Transpose", ["images"], ["transposed"], "to_channels", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["transposed", "kernel"], ["probabilities"], "convolution", group=groups),
    ]
    side = SIZE_PX - height + 1
    graph = helper.make_graph(
        nodes,
        "one_convolution",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", SIZE_PX, SIZE_PX, NUM_CHANNELS])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", num_outputs, side, side])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model).SerializeToString()


@pytest.mark.parametrize(
    ("shape", "groups", "largest"),
    [((NUM_CHANNELS, 1, 3, 3), NUM_CHANNELS, 127), ((8, NUM_CHANNELS, 1, 1), 1, 64)],
    ids=["depthwise", "dense"],
)
def test_weights_have_as_many_bits_as_do_not_saturate_on_any_processor(
    shape: tuple[int, ...], groups: int, largest: int
) -> None:
    """White pixels and weights all alike are the worst that the sums of a kernel can meet."""
    kernel = np.ones(shape, np.float32)
    content = _one_convolution(kernel, groups)
    generator = np.random.default_rng(5)
    pixels = generator.integers(0, 256, (4, SIZE_PX, SIZE_PX, NUM_CHANNELS), np.uint8)
    pixels[0] = 255
    quantised = to_int8(content, pixels)
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(quantised).graph.initializer}
    assert np.abs(stored["kernel_quantized"].astype(int)).max() == largest

    exact, rounded = (
        onnxruntime.InferenceSession(c, providers=["CPUExecutionProvider"]).run(
            None, {"images": pixels * np.float32(1)}
        )
        for c in (content, quantised)
    )
    one_step = exact[0].max() / 255
    np.testing.assert_allclose(rounded[0], exact[0], atol=1.1 * one_step)
