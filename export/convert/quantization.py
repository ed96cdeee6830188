"""Settings of integer formats: the number of calibration images, and which layers stay in float32."""

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Name = TypeVar("_Name", int, str)

# Enough for tensor ranges to converge; more cost time and seldom change much.
NUM_CALIBRATION_IMAGES = 256
# The share of weights that a float16 file keeps in float32. The first layers have few weights, and their rounding
# error propagates through all others: 1% of the weights of a fine-tuned EfficientNet-Lite0 cause 75% of the error.
SHARE_IN_FULL = 0.01
# A ranking of layers by sensitivity needs only a handful of images.
NUM_RANKING_IMAGES = 16
_DECIBELS = (-20.0, 60.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantisation:
    """How to quantise; weights always have a scale for each channel.

    Attributes:
        num_images: calibration images (fewer if the split has fewer).
        share_in_float: the largest share of layers and of weights to leave in float32, in [0, 1): the layers that
            quantisation harms most, and the layers that read them.
    """

    num_images: int = NUM_CALIBRATION_IMAGES
    share_in_float: float = 0.0


def signal_to_noise(exact: npt.NDArray[np.float32], quantised: npt.NDArray[np.float32], channel_axis: int) -> float:
    """Return the signal-to-noise ratio of quantisation in decibels, clipped to _DECIBELS, averaged over channels.

    Per channel, because a scale for the whole tensor destroys small channels beside a large one, which a sum would
    hide. All-zero channels are left out.
    """
    axes = tuple(i for i in range(exact.ndim) if i != channel_axis % exact.ndim)
    with np.errstate(all="ignore"):
        signal = np.square(exact, dtype=np.float64).sum(axes)
        noise = np.square(exact.astype(np.float64) - quantised).sum(axes)
        decibels = 10 * np.log10(signal / noise)
    # Non-finite values in either count as the worst.
    decibels = np.where(np.isfinite(signal) & np.isfinite(noise), decibels, _DECIBELS[0])
    heard = decibels[signal != 0]
    return float(np.clip(heard, *_DECIBELS).mean()) if heard.size else _DECIBELS[1]


def smallest(num_weights: Mapping[_Name, int], share: float) -> set[_Name]:
    """Return the smallest (ties by name) that together have at most `share` of all weights."""
    ranked = sorted(num_weights, key=lambda name: (num_weights[name], name))
    running = itertools.accumulate(num_weights[name] for name in ranked)
    most = share * sum(num_weights.values())
    return {name for name, total in zip(ranked, running, strict=True) if total <= most}


def most_sensitive(
    decibels: Mapping[str, float],
    share: float,
    *,
    readers: Mapping[str, Collection[str]],
    num_weights: Mapping[str, int],
) -> list[str]:
    """Return which of the `share` of layers with the lowest signal-to-noise ratio (ties by name) stay in float32.

    A layer is kept with its readers, since a tensor stays in float32 only if both ends do. Starting with the worst,
    layers are kept as long as the weights in float32 are at most `share` of all, so that the file stays small; if the
    worst layers are the largest, that may be none.

    Args:
        decibels: by layer, the signal-to-noise ratio of its output.
        share: of layers, and of weights, in [0, 1).
        readers: by layer, the layers that read its output.
        num_weights: by layer, its number of weights; 0 if not listed.
    """
    ranked = sorted(decibels, key=lambda name: (decibels[name], name))
    most = share * sum(num_weights.values())
    spared: set[str] = set()
    for name in ranked[: max(1, math.ceil(share * len(ranked)))]:
        with_it = spared | {name, *readers.get(name, ())}
        if sum(num_weights.get(layer, 0) for layer in with_it) <= most:
            spared = with_it
    return sorted(spared)
