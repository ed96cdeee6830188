"""How the integer formats are made: how many images they are calibrated on, and which layers they leave in float32."""

import dataclasses
import math

import numpy as np
import numpy.typing as npt

# Enough for the range of every tensor to settle; more cost time and seldom change much.
NUM_CALIBRATION_IMAGES = 256
# Sensitivity is a ranking: a handful of images puts the layers into the same order as many.
NUM_RANKING_IMAGES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantisation:
    """Weights have a scale for each channel throughout.

    num_images: training images from which every tensor's range is taken (fewer where the split has fewer).
    share_in_float: of the layers, those that quantisation harms most, that stay in float32; in [0, 1).
    """

    num_images: int = NUM_CALIBRATION_IMAGES
    share_in_float: float = 0.0


def signal_to_noise(exact: npt.NDArray[np.float32], quantised: npt.NDArray[np.float32]) -> float:
    """Signal to quantisation noise of one tensor in decibels; the lower, the more the tensor suffers."""
    signal = float(np.square(exact, dtype=np.float64).sum())
    noise = float(np.square(exact.astype(np.float64) - quantised).sum())
    return 10 * math.log10((signal + 1e-30) / (noise + 1e-30))


def most_sensitive(decibels: dict[str, float], share: float) -> list[str]:
    """The names with the lowest signal to noise, at least one; equal ones by name."""
    ranked = sorted(decibels, key=lambda name: (decibels[name], name))
    return ranked[: max(1, math.ceil(share * len(ranked)))]
