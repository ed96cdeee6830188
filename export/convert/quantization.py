"""How the integer formats are made: how many images they are calibrated on, and which layers they leave in float32."""

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Name = TypeVar("_Name", int, str)

# Enough for the range of every tensor to settle; more cost time and seldom change much.
NUM_CALIBRATION_IMAGES = 256
# Of all weights, those that a float16 file keeps in 32 bits. The first layers of a network have few weights, and their
# rounding goes through all that follow: a hundredth of the weights of a fine-tuned EfficientNet-Lite0 makes three
# quarters of the error.
SHARE_IN_FULL = 0.01
# Sensitivity is a ranking: a handful of images puts the layers into the same order as many.
NUM_RANKING_IMAGES = 16
_DECIBELS = (-20.0, 60.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantisation:
    """Weights have a scale for each channel throughout.

    num_images: training images from which every tensor's range is taken (fewer where the split has fewer).
    share_in_float: of the layers and of their weights, the part that may stay in float32: layers whose output
        quantisation harms most, together with the layers that read them; in [0, 1).
    """

    num_images: int = NUM_CALIBRATION_IMAGES
    share_in_float: float = 0.0


def signal_to_noise(exact: npt.NDArray[np.float32], quantised: npt.NDArray[np.float32], channel_axis: int) -> float:
    """Mean over the channels of a tensor of signal to quantisation noise in decibels, each within _DECIBELS.

    By channel, since small channels beside a large one are what a scale for the whole tensor destroys, and a sum over
    all would not show it. Channels of zeros say nothing.
    """
    axes = tuple(i for i in range(exact.ndim) if i != channel_axis % exact.ndim)
    with np.errstate(all="ignore"):
        signal = np.square(exact, dtype=np.float64).sum(axes)
        noise = np.square(exact.astype(np.float64) - quantised).sum(axes)
        decibels = 10 * np.log10(signal / noise)
    # What is not finite in one of the two could not be worse.
    decibels = np.where(np.isfinite(signal) & np.isfinite(noise), decibels, _DECIBELS[0])
    heard = decibels[signal != 0]
    return float(np.clip(heard, *_DECIBELS).mean()) if heard.size else _DECIBELS[1]


def smallest(num_weights: Mapping[_Name, int], share: float) -> set[_Name]:
    """From the smallest on (equal ones by name), as many as together have no more than `share` of all weights."""
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
    """Of the `share` of the layers with the lowest signal to noise (equal ones by name), those that it pays to spare.

    A layer is spared with those that read it, since a tensor stays in float32 where both its ends do. From the worst
    on, layers are spared with which no more than `share` of all weights stay in float32, so that the file remains a
    small one; where the worst are the largest, that may be none.

    readers: by layer, the layers that its output goes to.
    num_weights: by layer, how many weights it has; none where it is not named.
    """
    ranked = sorted(decibels, key=lambda name: (decibels[name], name))
    most = share * sum(num_weights.values())
    spared: set[str] = set()
    for name in ranked[: max(1, math.ceil(share * len(ranked)))]:
        with_it = spared | {name, *readers.get(name, ())}
        if sum(num_weights.get(layer, 0) for layer in with_it) <= most:
            spared = with_it
    return sorted(spared)
