"""The arithmetic of batches: every request gets exactly its own rows, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batching import joining
from serving.protocol.status import RequestError

SIZES = st.lists(st.integers(0, 7), min_size=1, max_size=8)


@given(sizes=SIZES, padding=st.integers(0, 9), width=st.integers(0, 3))
def test_what_is_joined_and_split_is_what_it_was(sizes: list[int], padding: int, width: int) -> None:
    total = sum(sizes)
    rows = np.arange(total * width, dtype=np.int32).reshape(total, width)
    words = np.array([b"w%d" % row for row in range(total)], object)
    ends = np.cumsum(sizes)
    requests = [
        {"rows": rows[end - size : end], "words": words[end - size : end]}
        for size, end in zip(sizes, ends, strict=True)
    ]
    padding = padding if total else 0
    joined = joining.join(requests, total + padding)
    assert joined["rows"].dtype == np.int32
    assert joined["rows"].shape == (total + padding, width)
    assert joined["words"][total:].tolist() == words[-1:].tolist() * padding
    answers = joining.split(joined, sizes)
    assert len(answers) == len(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert {name: array.tolist() for name, array in request.items()} == {
            name: array.tolist() for name, array in answer.items()
        }


@given(shapes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5))
def test_different_shapes_are_padded_at_their_ends_with_their_first_element(shapes: list[tuple[int, int, int]]) -> None:
    requests = [{"x": np.arange(np.prod(shape)).reshape(shape) + 1000 * i} for i, shape in enumerate(shapes)]
    joined = joining.join(requests, sum(shape[0] for shape in shapes))["x"]
    assert joined.shape[1:] == (max(shape[1] for shape in shapes), max(shape[2] for shape in shapes))
    start = 0
    for i, shape in enumerate(shapes):
        rows = joined[start : start + shape[0]]
        assert (rows[:, : shape[1], : shape[2]] == requests[i]["x"]).all()
        assert (rows[:, shape[1] :] == 1000 * i).all()
        assert (rows[:, :, shape[2] :] == 1000 * i).all()
        start += shape[0]


def test_what_cannot_be_padded_is_refused() -> None:
    with pytest.raises(RequestError, match="Got empty tensor in batch of non-empty tensors"):
        joining.join([{"x": np.zeros((1, 2))}, {"x": np.zeros((1, 0))}], 2)
    with pytest.raises(RequestError, match="rank from 1 to 6"):
        joining.join([{"x": np.zeros((1,) * 6 + (2,))}, {"x": np.zeros((1,) * 7)}], 2)


def test_one_request_that_fills_the_batch_is_not_copied() -> None:
    array = np.zeros((4, 2))
    assert joining.join([{"x": array}], 4)["x"] is array


@given(size=st.integers(0, 50), first=st.integers(0, 7), limit=st.integers(1, 7))
def test_the_parts_of_a_large_request_are_as_large_as_their_batches_allow(size: int, first: int, limit: int) -> None:
    first = min(first, limit)
    sizes = joining.part_sizes(size, first=first, limit=limit)
    assert sum(sizes) == size
    if first and sizes:
        assert sizes[0] == min(first, size)
    rest = sizes[1:] if first else sizes
    assert all(part == limit for part in rest[:-1])
    assert all(1 <= part <= limit for part in rest)


@given(sizes=st.sets(st.integers(1, 64)), size=st.integers(1, 80))
def test_a_batch_is_padded_to_the_next_allowed_size(sizes: set[int], size: int) -> None:
    allowed = sorted(sizes)
    padded = joining.round_up(size, allowed)
    assert padded == min([s for s in allowed if s >= size], default=size)


def test_only_what_can_be_joined_has_one_key() -> None:
    def key(pad: bool = False, **inputs: np.ndarray) -> object:
        return joining.batch_key(inputs, pad_variable_length=pad)

    a = np.zeros((2, 3), np.float32)
    assert key(x=a) == key(x=a[:1])
    assert key(x=a, y=a) == key(y=a, x=a)
    assert key(x=a) != key(y=a)
    assert key(x=a) != key(x=a.astype(np.float64))
    assert key(x=a) != key(x=a[:, :2])
    assert key(True, x=a) == key(True, x=a[:, :2])
    assert key(True, x=a) != key(True, x=a[:, :2, None])


def test_strings_count_with_their_contents() -> None:
    words = np.array([b"a" * 1000, b""], object)
    assert joining.num_bytes_waiting({"x": np.zeros(4, np.float32), "s": words}) == 16 + words.nbytes + 1000
