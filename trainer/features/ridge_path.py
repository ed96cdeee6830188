"""Ridge regression from features to classes, for a path of strengths from one decomposition.

Source: Hoerl & Kennard 1970, Technometrics 12 (ridge regression); for the decomposition that all strengths share,
Hastie, Tibshirani, Friedman, The Elements of Statistical Learning, section 3.4.1. Targets are 1 for the class of an
image and 0 for the others; features and targets are centred, so that the bias is not penalised.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# Candidate factors from outputs, regressed to 0 and 1, to logits; the best on the validation images is used.
_LOGIT_SCALES = np.geomspace(1.0, 100.0, 41)
# Float64 values in memory at a time: 32 MB.
_BLOCK_VALUES = 2**22


class Solution(NamedTuple):
    """The best solution of a path: that of the highest validation accuracy and, among equals, of the largest strength.

    Attributes:
        kernel: [d, num_classes].
        bias: [num_classes].
        strength: The chosen strength, relative to the mean eigenvalue of the features' covariance.
        accuracies: Validation accuracy of each strength, in the given order.
    """

    kernel: Array
    bias: Array
    strength: float
    accuracies: list[float]


def solve_path(
    features: Array, labels: Array, weights: Array, validation: tuple[Array, Array], strengths: list[float]
) -> Solution:
    """Solve for every strength, and choose one by the accuracy on the validation images.

    Images, strengths and outputs are processed in blocks; in memory are a few matrices of the size of the head and of
    min(images, features) squared, see `needed_bytes`.

    Args:
        features: [n, d] float32.
        labels: [n], from 0.
        weights: [n] float32, of the examples in the squared error.
        validation: Features [m, d] and labels [m].
        strengths: Each above 0, relative to the mean eigenvalue of the features' covariance.
    """
    num_classes = int(max(labels.max(), validation[1].max())) + 1
    share = (weights / weights.sum()).astype(np.float64)
    mean = sum((share[rows] @ features[rows] for rows in _blocks(features)), np.zeros(features.shape[1]))
    centred = _Centred(features, mean, share)
    target_mean = np.bincount(labels, share, num_classes)
    path = _Path.of(centred, labels, target_mean)
    unit = max(centred.sum_of_squares() / features.shape[1], 1e-30)
    added = [strength * unit for strength in strengths]
    accuracies = [0.0] * len(strengths)
    for rows in _blocks(validation[0], num_classes):
        for i, outputs in enumerate(path.outputs(validation[0][rows], added)):
            accuracies[i] += float((outputs.argmax(axis=1) == validation[1][rows]).sum())
    accuracies = [count / len(validation[1]) for count in accuracies]
    best = max(range(len(strengths)), key=lambda i: (accuracies[i], strengths[i]))
    losses = np.zeros(len(_LOGIT_SCALES))
    for rows in _blocks(validation[0], num_classes):
        (outputs,) = path.outputs(validation[0][rows], [added[best]])
        losses += [_cross_entropy(outputs * scale, validation[1][rows]) for scale in _LOGIT_SCALES]
    scale = _LOGIT_SCALES[losses.argmin()]
    kernel = path.basis @ (path.projected / (path.values + added[best])[:, np.newaxis])
    bias = target_mean - mean @ kernel
    return Solution((kernel * scale).astype(np.float32), (bias * scale).astype(np.float32), strengths[best], accuracies)


def needed_bytes(num_images: int, num_features: int, num_classes: int) -> int:
    """Estimate the peak memory of `solve_path`, without the features."""
    rank = min(num_images, num_features)
    # Product, eigenvectors and workspace of the decomposition; basis; sums, targets, solution and kernel.
    squares, basis, heads = 4 * rank**2, 2 * num_features * rank, 4 * num_classes * max(num_features, rank)
    return 8 * (squares + basis + heads + 4 * _BLOCK_VALUES)


def _blocks(features: Array, num_columns: int = 0) -> Iterator[slice]:
    """Split the rows of `features` into blocks of about `_BLOCK_VALUES` values, or outputs of `num_columns`."""
    size = max(1, _BLOCK_VALUES // max(features.shape[1], num_columns))
    return (slice(start, start + size) for start in range(0, len(features), size))


class _Centred(NamedTuple):
    """Features minus their mean, times the square root of each image's share, computed a block at a time."""

    features: Array
    mean: Array
    share: Array

    def block(self, rows: slice) -> Array:
        return (self.features[rows] - self.mean) * np.sqrt(self.share[rows])[:, np.newaxis]

    def sum_of_squares(self) -> float:
        return sum(float(np.square(self.block(rows)).sum()) for rows in _blocks(self.features))

    def gram(self) -> Array:
        """Return the Gram matrix of the features, [d, d]."""
        product = np.zeros([self.features.shape[1]] * 2)
        for rows in _blocks(self.features):
            block = self.block(rows)
            product += block.T @ block
        return product


class _Path(NamedTuple):
    """The decomposition that all strengths share; the solution of strength s is `basis @ (projected / (values + s))`.

    It is computed from the smaller of the two Gram matrices of the centred features.

    Attributes:
        basis: [d, r].
        values: Eigenvalues [r].
        projected: The targets in the basis, [r, num_classes].
    """

    basis: Array
    values: Array
    projected: Array
    mean: Array
    target_mean: Array

    @classmethod
    def of(cls, centred: _Centred, labels: Array, target_mean: Array) -> "_Path":
        num_rows, num_columns = centred.features.shape
        root = np.sqrt(centred.share)
        if num_columns <= num_rows:
            values, basis = np.linalg.eigh(centred.gram())
            sums = np.zeros([len(target_mean), num_columns])
            for rows in _blocks(centred.features):
                _add_by_class(sums, labels[rows], centred.block(rows) * root[rows, np.newaxis])
            projected = basis.T @ sums.T
        else:
            # With fewer images than features, all features together are smaller than the other Gram matrix.
            whole = centred.block(slice(None))
            values, vectors = np.linalg.eigh(whole @ whole.T)
            basis = whole.T @ vectors
            sums = np.zeros([len(target_mean), num_rows])
            weighted = vectors * root[:, np.newaxis]
            _add_by_class(sums, labels, weighted)
            projected = (sums - np.outer(target_mean, weighted.sum(axis=0))).T
        return cls(basis, np.maximum(values, 0.0), projected, centred.mean, target_mean)

    def outputs(self, features: Array, added: list[float]) -> Iterator[Array]:
        """Yield the outputs [b, num_classes] of images [b, d] for each strength."""
        seen = (features - self.mean) @ self.basis
        return ((seen / (self.values + strength)) @ self.projected + self.target_mean for strength in added)


def _add_by_class(sums: Array, labels: Array, values: Array) -> None:
    """Add each row of `values` to the row of its class in `sums`."""
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    sums[classes] += np.add.reduceat(values[order], starts, axis=0)


def _cross_entropy(logits: Array, labels: Array) -> float:
    """Return the cross-entropy, summed over the images."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(labels)), labels]
    return float((np.log(np.exp(shifted).sum(axis=1)) - chosen).sum())
