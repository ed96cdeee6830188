"""Ridge regression from features to classes, for a whole path of strengths from one decomposition.

Source: Hoerl & Kennard 1970, Technometrics 12 (ridge regression); for the decomposition that all strengths share,
Hastie, Tibshirani, Friedman, The Elements of Statistical Learning, section 3.4.1. Targets are 1 for the class of an
image and 0 for the others; means are taken out, so that the bias is not penalised.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# What the outputs, regressed to 0 and 1, are multiplied with to be logits: the best of these on the validation images.
_LOGIT_SCALES = np.geomspace(1.0, 100.0, 41)


class Solution(NamedTuple):
    """Of one path.

    Attributes:
        kernel, bias: [d, num_classes] and [num_classes], of the strength that is best on the validation images; of
            equally good ones, the strongest.
        strength: the chosen one, over the mean eigenvalue of the features' covariance as all of them are.
        accuracies: on the validation images, for each strength in the order given.
    """

    kernel: Array
    bias: Array
    strength: float
    accuracies: list[float]


def solve_path(
    features: Array, labels: Array, weights: Array, validation: tuple[Array, Array], strengths: list[float]
) -> Solution:
    """Solves for every strength, and chooses by the accuracy on the validation images.

    Args:
        features: [n, d] float32; `labels` [n] from 0; `weights` [n] float32 of the examples in the squared error.
        validation: features [m, d] and labels [m].
        strengths: each above 0, relative to the mean eigenvalue of the features' covariance.
    """
    num_classes = int(max(labels.max(), validation[1].max())) + 1
    share = (weights / weights.sum()).astype(np.float64)
    targets = np.eye(num_classes)[labels]
    mean, target_mean = share @ features, share @ targets
    root = np.sqrt(share)[:, np.newaxis]
    centred = (features - mean) * root
    basis, values, projected = _decompose(centred, (targets - target_mean) * root)
    unit = max(float(np.square(centred).sum()) / features.shape[1], 1e-30)
    seen = (validation[0] - mean) @ basis
    outputs = [seen @ (projected / (values + strength * unit)[:, np.newaxis]) + target_mean for strength in strengths]
    accuracies = [float((output.argmax(axis=1) == validation[1]).mean()) for output in outputs]
    best = max(range(len(strengths)), key=lambda i: (accuracies[i], strengths[i]))
    scale = min(_LOGIT_SCALES, key=lambda scale: _cross_entropy(outputs[best] * scale, validation[1]))
    kernel = basis @ (projected / (values + strengths[best] * unit)[:, np.newaxis])
    bias = target_mean - mean @ kernel
    return Solution((kernel * scale).astype(np.float32), (bias * scale).astype(np.float32), strengths[best], accuracies)


def _decompose(centred: Array, targets: Array) -> tuple[Array, Array, Array]:
    """A basis [d, r], eigenvalues [r] and the targets in it [r, num_classes]: the solution of strength s is
    `basis @ (projected / (values + s))`. From the smaller of the two products of `centred` with itself.
    """
    num_rows, num_columns = centred.shape
    if num_columns <= num_rows:
        values, basis = np.linalg.eigh(centred.T @ centred)
        return basis, np.maximum(values, 0.0), basis.T @ (centred.T @ targets)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    return centred.T @ vectors, np.maximum(values, 0.0), vectors.T @ targets


def _cross_entropy(logits: Array, labels: Array) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(labels)), labels]
    return float((np.log(np.exp(shifted).sum(axis=1)) - chosen).mean())
