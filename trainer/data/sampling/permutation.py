"""Stateless random permutations of [0, size), computed in the graph.

Any element of any permutation is computed directly, without state and without the other elements. The operations run on
the host: XLA does not have all of them.
"""

from typing import Any, Final

import tensorflow as tf

Tensor = Any

# Four rounds, the default of the kernel, mix badly: on class-sorted data whole batches come out of one class.
_NUM_ROUNDS = 8
# The kernel walks a domain of at least 2**16, so that each index of a small permutation costs 2**16 / size ciphers.
# Up to here, counting hashes is cheaper.
_MAX_SIZE_BY_RANK: Final = 256

# SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014): a step and a mix that is
# a bijection of the 64-bit integers.
_STEP: Final = 0x9E3779B97F4A7C15
_MULTIPLIERS: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD: Final = 2**64


def make_keys(*words: "int | Tensor") -> Tensor:
    """Hash words to keys, [k] uint64, or a scalar if no word is a tensor; different words rarely have equal keys.

    The words are non-negative integers, or int64 tensors [k] or scalars; all of their bits count.
    """
    key: Any = 0
    for word in words:
        if isinstance(word, int) and isinstance(key, int):
            key = _mix_int((key + word) % _WORD)
        else:
            key = _mix(_uint64(key) + _uint64(word))
    return _uint64(key)


def random_below(bound: "int | Tensor", keys: Tensor) -> Tensor:
    """Return a random number in [0, bound) for each key, [k] int64; uniform to within bound / 2**63."""
    return tf.cast(tf.bitwise.right_shift(_mix(keys), tf.constant(1, tf.uint64)), tf.int64) % bound


def permute(index: Tensor, size: Tensor, keys: Tensor, *, min_size: int, max_size: int) -> Tensor:
    """Return the elements at `index` of random permutations, [k] int64 in [0, size).

    Args:
        index: [k] int64, in [0, size).
        size: [k] int64, or a scalar, at least 1.
        keys: [k] uint64, or a scalar; each key has its own permutation.
        min_size: Lower bound of `size`, known when the graph is built.
        max_size: Upper bound of `size`, known when the graph is built.
    """
    size, keys = tf.broadcast_to(size, tf.shape(index)), tf.broadcast_to(keys, tf.shape(index))
    width = min(max_size, _MAX_SIZE_BY_RANK)
    if max_size <= _MAX_SIZE_BY_RANK:
        return _permute_by_rank(index, size, keys, width)
    if min_size > _MAX_SIZE_BY_RANK:
        return _permute_by_cipher(index, size, keys)
    is_small = size <= _MAX_SIZE_BY_RANK
    # Where the rank is used, the cipher gets a size that it is fast for.
    by_cipher = _permute_by_cipher(index, tf.where(is_small, tf.constant(2**16, tf.int64), size), keys)
    return tf.where(is_small, _permute_by_rank(index, size, keys, width), by_cipher)


def _permute_by_rank(index: Tensor, size: Tensor, keys: Tensor, width: int) -> Tensor:
    """Map index i to the rank of its hash among those of [0, size); the hash is a bijection, so without ties."""

    def hash_of(i: Tensor, key: Tensor) -> Tensor:
        return _mix(key + i * tf.constant(_STEP, tf.uint64))

    slots = tf.range(width, dtype=tf.int64)[tf.newaxis]
    is_before = hash_of(_uint64(slots), keys[:, tf.newaxis]) < hash_of(_uint64(index), keys)[:, tf.newaxis]
    return tf.math.count_nonzero(tf.logical_and(is_before, slots < size[:, tf.newaxis]), axis=1, dtype=tf.int64)


def _permute_by_cipher(index: Tensor, size: Tensor, keys: Tensor) -> Tensor:
    # Below 2**16 the kernel reads no more than the low 8 bits of each word of its seed, and 16 below 2**32: seeds that
    # were not hashed would give the same order to every 256th epoch.
    words = (keys, tf.bitwise.right_shift(keys, tf.constant(32, tf.uint64)), _mix(keys))
    low = tf.constant(2**32 - 1, tf.uint64)
    seeds = tf.stack([tf.cast(tf.bitwise.bitwise_and(word, low), tf.uint32) for word in words], axis=1)
    return tf.raw_ops.RandomIndexShuffle(index=index, seed=seeds, max_index=size - 1, rounds=_NUM_ROUNDS)


def _uint64(value: "int | Tensor") -> Tensor:
    return tf.constant(value % _WORD, tf.uint64) if isinstance(value, int) else tf.cast(value, tf.uint64)


def _mix(x: Tensor) -> Tensor:
    x = x + tf.constant(_STEP, tf.uint64)
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint64)))
        x = x * tf.constant(multiplier, tf.uint64)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(31, tf.uint64)))


def _mix_int(x: int) -> int:
    x = (x + _STEP) % _WORD
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        x = (x ^ x >> shift) * multiplier % _WORD
    return x ^ x >> 31
