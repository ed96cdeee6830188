"""Labels and logits of the three tasks, drawn at random, many logits equal."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

LOGIT = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-20, 20, width=32))


@st.composite
def multi_label_splits(draw):
    num_examples, num_classes = draw(st.integers(1, 40)), draw(st.integers(2, 6))
    shape = (num_examples, num_classes)
    labels = draw(arrays.arrays(np.int64, shape, elements=st.integers(0, 1)))
    return labels, draw(arrays.arrays(np.float32, shape, elements=LOGIT))


@st.composite
def binary_splits(draw):
    num_examples = draw(st.integers(2, 40))
    labels = draw(arrays.arrays(np.int64, num_examples, elements=st.integers(0, 1)))
    logit = draw(arrays.arrays(np.float32, num_examples, elements=LOGIT))
    return labels, np.stack([np.zeros_like(logit), logit], axis=1)


@st.composite
def single_label_splits(draw):
    num_examples, num_classes = draw(st.integers(1, 40)), draw(st.integers(2, 6))
    labels = draw(arrays.arrays(np.int64, num_examples, elements=st.integers(0, num_classes - 1)))
    return labels, draw(arrays.arrays(np.float32, (num_examples, num_classes), elements=LOGIT))


def names(count: int) -> list[str]:
    return [f"class {i}" for i in range(count)]


def skewed_multi_label(num_examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes, of which a tenth of the examples have each; good logits, but too low by a number of its own."""
    rng = np.random.default_rng(seed)
    labels = (rng.random([num_examples, 3]) < 0.1).astype(np.int64)
    logits = 4 * labels - 2 + rng.normal(size=labels.shape) - np.array([0, 2, 4])
    return labels, logits.astype(np.float32)
