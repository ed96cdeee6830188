"""Progressive resizing: which steps of a run train on images of which size, from small to the model's own.

Small images are quicker and, at the start, nearly as good (Tan & Le 2021, arXiv:2104.00298, section 4).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from trainer.errors import ConfigError


class Stage(NamedTuple):
    """Steps [start_step, stop_step) train on images of one size."""

    start_step: int
    stop_step: int
    image_size_px: int


def divide_into_stages(num_train_steps: int, sizes_px: Sequence[int]) -> list[Stage]:
    """Equal parts of [0, num_train_steps), one for each size; they differ by at most one step."""
    bounds = [num_train_steps * i // len(sizes_px) for i in range(len(sizes_px) + 1)]
    return [Stage(*steps, size_px) for steps, size_px in zip(itertools.pairwise(bounds), sizes_px, strict=True)]


def plan_stages(
    sizes_px: Sequence[int] | None, *, num_train_steps: int, image_size_px: int, min_image_size_px: int, backbone: str
) -> list[Stage]:
    """The stages of a run whose `augment.progressive_sizes_px` is `sizes_px`; a single one without.

    Raises:
        ConfigError: the sizes do not rise to the model's own, the backbone does not take them, or there are more
            sizes than steps.
    """
    sizes = sizes_px or [image_size_px]
    name = f"augment.progressive_sizes_px is {list(sizes)}"
    if any(a >= b for a, b in itertools.pairwise(sizes)):
        raise ConfigError(f"{name}, which does not rise; order the sizes from small to large, each once")
    if sizes[-1] != image_size_px:
        raise ConfigError(
            f"{name}, whose last size is not the model's {image_size_px} px; end with {image_size_px}, or use --set "
            f"model.image_size_px={sizes[-1]}"
        )
    if sizes_px and sizes[0] < min_image_size_px:
        raise ConfigError(f"{name}, and {backbone} takes images of at least {min_image_size_px} px; start there")
    if len(sizes) > num_train_steps:
        raise ConfigError(
            f"{name}, and the run has {num_train_steps} steps, fewer than sizes; raise train.epochs or leave sizes out"
        )
    return divide_into_stages(num_train_steps, sizes)
