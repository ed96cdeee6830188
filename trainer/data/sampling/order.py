"""The order of training examples: a stateless function from position to example. No other module knows the order.

Training reads one endless stream of positions; batch b is positions [b * B, (b + 1) * B), and an epoch is as many
positions as there are examples. The example at a position depends on the seed alone and is computed directly: workers
agree without communication, and a resumed run needs no iterator state.

    order = ExampleOrder.of(
        sampling=config.data.sampling, run_length=config.data.run_length, seed=config.train.seed,
        num_examples=reader.num_examples, labels=reader.labels(), weights=reader.weights(), class_names=class_names,
    )
    examples, visits = order.draw(positions)

`labels` are for class_balanced sampling and `weights` for weighted sampling; the others need neither.
"""

import enum
import math
import shlex
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.data.sampling.permutation import make_keys, permute, random_below
from trainer.distribute.topology import BatchDivision
from trainer.errors import ConfigError, DataError

Tensor = Any
Sampling = Literal["uniform", "class_balanced", "weighted"]


class Purpose(enum.IntEnum):
    """A use of random numbers; different purposes never share a key."""

    ORDER = 0
    AUGMENTATION = 1
    DROPOUT = 2
    SAMPLING = 3
    DEVICE_AUGMENTATION = 4
    MIXING = 5
    RING_OFFSET = 6
    AFFINE = 7


class Draws(NamedTuple):
    """The examples at some positions of the stream."""

    # [k] int64, each in [0, num_examples).
    examples: Tensor
    # [k] int64, different for every draw of the same example. Augmentation is keyed by (seed, visit, example), so that
    # no two draws of an image look the same. For uniform sampling the visit is the epoch.
    visits: Tensor


class ExampleOrder:
    """Uniform sampling: every example exactly once an epoch, in an order that differs by seed and epoch.

    With a `run_length` r above 1, runs of r neighbouring records stay together, for storage that needs long reads. In
    each epoch the records form a ring that is cut at a random offset; from there, full runs are shuffled, and the rest
    (fewer than 2r records) comes at the ends of the epoch. Full runs start at multiples of r, so that no batch and no
    replica cuts them if r divides their slices (see `run_length_warning`).

    The cost of r: a batch of B holds B / r independent draws. Where neighbours are alike, the share of a class in a
    batch varies as in a batch of that size, up to sqrt(r) times as much on class-sorted records. `prepare` stores
    examples shuffled; then batches are as good as any, but the same neighbours meet again and again.
    """

    def __init__(self, num_examples: int, seed: int, run_length: int = 1) -> None:
        self.num_examples, self.seed, self.run_length = num_examples, seed, run_length

    @staticmethod
    def of(
        *,
        num_examples: int,
        seed: int,
        sampling: Sampling = "uniform",
        run_length: int = 1,
        labels: npt.NDArray[np.int32] | None = None,
        weights: npt.NDArray[np.float32] | None = None,
        class_names: list[str] | None = None,
    ) -> "ExampleOrder":
        """Return the order of a sampling.

        Args:
            num_examples: Of the split.
            seed: Of the order.
            sampling: The setting `data.sampling`.
            run_length: The setting `data.run_length`.
            labels: [num_examples], see `SplitReader.labels`; for class_balanced.
            weights: [num_examples], see `SplitReader.weights`; for weighted.
            class_names: Of the labels, for errors, and to find classes without examples.

        Raises:
            ConfigError: `run_length` does not fit the sampling, or is larger than the split.
            DataError: The labels or weights do not allow the sampling.
        """
        check_run_length(run_length, sampling=sampling, num_examples=num_examples)
        if sampling == "uniform":
            return ExampleOrder(num_examples, seed, run_length)
        if sampling == "class_balanced":
            assert labels is not None and len(labels) == num_examples, "class_balanced needs the labels"
            return ClassBalancedOrder(labels, seed, class_names)
        assert weights is not None and len(weights) == num_examples, "weighted needs the weights"
        return WeightedOrder(weights, seed)

    def draw(self, positions: Tensor) -> Draws:
        """Return the examples at the stream positions [k] int64, each 0 or above. Runs on the host."""
        epochs, index = self._split(positions)
        n, r = self.num_examples, self.run_length
        # Of an epoch: head, full runs, tail; on the ring: full runs, head, tail.
        head = tf.minimum(-epochs * n % r, n)
        num_runs = (n - head) // r
        run, within = (index - head) // r, (index - head) % r
        is_in_run = tf.logical_and(run >= 0, run < num_runs)
        shuffled = permute(
            tf.where(is_in_run, run, tf.zeros_like(run)),
            tf.maximum(num_runs, 1),
            make_keys(self.seed, Purpose.ORDER, epochs),
            min_size=max((n - r + 1) // r, 1),
            max_size=n // r,
        )
        left_over = tf.where(run < 0, num_runs * r + index, index)
        on_ring = tf.where(is_in_run, shuffled * r + within, left_over)
        offset = random_below(n, make_keys(self.seed, Purpose.RING_OFFSET, epochs))
        return Draws((on_ring + offset) % n, epochs)

    def _split(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Split stream positions into epochs and indices within them."""
        positions = tf.convert_to_tensor(positions, tf.int64)
        return positions // self.num_examples, positions % self.num_examples

    def _shuffled_slots(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Map positions to epochs and slots; each epoch visits its slots [0, num_examples) once, shuffled."""
        epochs, index = self._split(positions)
        n = self.num_examples
        keys = make_keys(self.seed, Purpose.ORDER, epochs)
        return epochs, permute(index, tf.constant(n, tf.int64), keys, min_size=n, max_size=n)


class ClassBalancedOrder(ExampleOrder):
    """Balanced sampling: every class equally often, and within a class every example equally often.

    In the first m epochs (of `num_examples` draws each), for any m, two classes differ by at most one draw. A class
    goes through its examples in passes, each of which has every example once, in a new order. The visit is the pass.
    """

    def __init__(self, labels: npt.NDArray[np.int32], seed: int, class_names: list[str] | None = None) -> None:
        """Build the tables of classes; raise DataError for examples of several labels and classes without examples."""
        super().__init__(len(labels), seed)
        if labels.min() < 0:
            raise DataError(
                f"data.sampling is class_balanced, and training image {labels.argmin()} has several labels; use "
                "--set data.sampling=uniform or weighted"
            )
        sizes = np.bincount(labels, minlength=len(class_names or ()))
        if sizes.min() == 0:
            label = int(sizes.argmin())
            name = class_names[label] if class_names else str(label)
            raise DataError(
                f"data.sampling is class_balanced, and the class {name!r} has no training images; use "
                "--set data.sampling=uniform, or prepare the dataset without the class: trainer prepare SOURCE "
                f"--out DATASET --exclude {shlex.quote(name)}"
            )
        self._num_classes = len(sizes)
        self._min_size, self._max_size = int(sizes.min()), int(sizes.max())
        self._sizes = _host_table(sizes)
        self._starts = _host_table(np.cumsum(sizes) - sizes)
        # The examples of class 0, of class 1...
        self._members = _host_table(np.argsort(labels, kind="stable"))

    def draw(self, positions: Tensor) -> Draws:
        epochs, slots = self._shuffled_slots(positions)
        slots += epochs * self.num_examples
        label, draw_of_class = slots % self._num_classes, slots // self._num_classes
        size = tf.cast(tf.gather(self._sizes, label), tf.int64)
        passes = draw_of_class // size
        member = permute(
            draw_of_class % size,
            size,
            make_keys(self.seed, Purpose.SAMPLING, label, passes),
            min_size=self._min_size,
            max_size=self._max_size,
        )
        place = tf.cast(tf.gather(self._starts, label), tf.int64) + member
        return Draws(tf.cast(tf.gather(self._members, place), tf.int64), passes)


class WeightedOrder(ExampleOrder):
    """Weighted sampling: n * w_i / sum(w) draws of example i an epoch, rounded down or up.

    Systematic sampling (Madow 1949, Annals of Mathematical Statistics 20): the weights lie end to end on a line, and n
    equally spaced points are laid over it; an example is drawn once for each point on its part. From epoch to epoch
    the points shift by the golden ratio of their distance, so that the draws of an example approach its share over the
    epochs. All arithmetic is in integers: the weights are multiplied by a power of two and rounded, to 1 at least, such
    that their sum is between a half and the whole of min(2**48, 2**62 / n). Whole numbers are kept exactly.
    """

    def __init__(self, weights: npt.NDArray[np.float32], seed: int) -> None:
        """Quantize the weights; raise DataError if one of them is not finite and above 0."""
        super().__init__(len(weights), seed)
        usable = np.isfinite(weights) & (weights > 0)
        if not usable.all():
            index = int(usable.argmin())
            raise DataError(
                f"data.sampling is weighted, and the weight of training image {index} is {weights[index]}; weights "
                "have to be above 0 and finite: prepare the dataset again"
            )
        parts = quantize_weights(weights)
        self._total = int(parts.sum())
        self._max_draws = -(-self.num_examples * int(parts.max()) // self._total)
        self._step = round(self._total * (math.sqrt(5) - 1) / 2)
        self._ends = _host_table(np.cumsum(parts), np.int64)

    def draw(self, positions: Tensor) -> Draws:
        epochs, slots = self._shuffled_slots(positions)
        n, total = self.num_examples, self._total
        # In units of 1/n of a part, the points are `total` apart, and the line is n * total long.
        offset = random_below(total, make_keys(self.seed, Purpose.SAMPLING))
        offset = (offset + epochs % 2**14 * self._step) % total
        examples = tf.searchsorted(self._ends, (slots * total + offset) // n, side="right", out_type=tf.int64)
        starts = tf.where(examples > 0, tf.gather(self._ends, tf.maximum(examples - 1, 0)), tf.zeros_like(examples))
        first_slots = -((offset - starts * n) // total)
        return Draws(examples, epochs * self._max_draws + slots - first_slots)


def quantize_weights(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Scale positive weights [n] to integers [n] of at least 1, as exactly as `WeightedOrder` says."""
    exact = weights.astype(np.float64)
    limit = min(2.0**48, 2.0**62 / len(weights))
    parts = np.rint(np.ldexp(exact, math.floor(math.log2(limit / exact.sum()))))
    return np.maximum(parts, 1).astype(np.int64)


def check_run_length(run_length: int, *, sampling: Sampling, num_examples: int) -> None:
    """Raise ConfigError if `run_length` does not fit the sampling, or is larger than the split."""
    if run_length > num_examples:
        raise ConfigError(
            f"data.run_length is {run_length}, and there are {num_examples} training images; use a small part of "
            "that, such as --set data.run_length=16"
        )
    if run_length > 1 and sampling != "uniform":
        raise ConfigError(
            f"data.run_length is {run_length}, but data.sampling is {sampling}, which draws examples one by one; "
            "use --set data.run_length=1 or --set data.sampling=uniform"
        )


def run_length_warning(run_length: int, division: BatchDivision) -> str | None:
    """Return a warning if the borders of batches or of the replicas' slices cut runs in two."""
    borders = [border for replica in range(division.num_replicas) for border in division.slice_of(replica)]
    fitting = math.gcd(*borders, division.global_batch_size)
    if fitting % run_length == 0:
        return None
    return (
        f"data.run_length is {run_length}, which does not divide the slices of {division.num_replicas} replicas of a "
        f"global batch of {division.global_batch_size}: runs are cut at their borders; use a divisor of {fitting}, or "
        f"a multiple of {math.lcm(run_length, 2) * division.num_replicas} for train.global_batch_size"
    )


def stateless_seed(seed: int, epoch: Tensor, example: Tensor, purpose: Purpose) -> Tensor:
    """Return a seed [2] int64 for stateless random operations, keyed by (seed, epoch, example, purpose)."""
    return tf.stack([seed + epoch * 2**32, example + purpose.value * 2**56])


def _host_table(values: npt.NDArray[Any], dtype: npt.DTypeLike = np.int32) -> Tensor:
    """Return a tensor that graphs capture; a constant would be copied into each of them."""
    with tf.init_scope(), tf.device("CPU:0"):
        return tf.constant(values, dtype)
