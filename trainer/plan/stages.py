"""The stages of a run, which differ in image size and trained layers.

Progressive resizing goes from small images to the model's own: they are faster and, at the start, nearly as good (Tan &
Le 2021, arXiv:2104.00298, section 4). Gradual unfreezing goes from the head down (Howard & Ruder 2018,
arXiv:1801.06146, section 3.3).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from trainer.config.training import TrainConfig
from trainer.data.sampling.epochs import Epochs
from trainer.errors import ConfigError


class Stage(NamedTuple):
    """Steps [start_step, stop_step), which train `trainable` (see `trainer.config.model`) on images of one size."""

    start_step: int
    stop_step: int
    image_size_px: int
    trainable: str


def plan_stages(
    sizes_px: Sequence[int] | None,
    train: TrainConfig,
    *,
    trainable: str,
    epochs: Epochs,
    image_size_px: int,
    min_image_size_px: int,
    backbone: str,
) -> list[Stage]:
    """Return the stages of `augment.progressive_sizes_px` and `train.unfreeze`; a single one without these settings.

    Raises:
        ConfigError: The sizes do not rise to the model's own, the backbone does not take them, there are more sizes
            than steps, or the epochs of `train.unfreeze` do not rise within the run.
    """
    sizes, num_train_steps = list(sizes_px or [image_size_px]), epochs.num_train_steps
    _check_sizes(sizes, num_train_steps, image_size_px, backbone, min_image_size_px if sizes_px else 0)
    starts = {0: trainable, **_unfreezing_steps(train, epochs)}
    size_bounds = divide_steps(num_train_steps, len(sizes))
    bounds = sorted({*size_bounds, *starts})
    return [
        Stage(
            start,
            stop,
            sizes[sum(bound <= start for bound in size_bounds) - 1],
            starts[max(step for step in starts if step <= start)],
        )
        for start, stop in itertools.pairwise(bounds)
    ]


def divide_steps(num_train_steps: int, num_parts: int) -> list[int]:
    """Return the bounds, first and last included, of parts of [0, num_train_steps) that differ by at most one step."""
    return [num_train_steps * i // num_parts for i in range(num_parts + 1)]


def _unfreezing_steps(train: TrainConfig, epochs: Epochs) -> dict[int, str]:
    """Return what is trained from each step of `train.unfreeze` on: the first after the end of its epoch."""
    asked, num_train_steps = [unfreezing.epoch for unfreezing in train.unfreeze], epochs.num_train_steps
    if any(a >= b for a, b in itertools.pairwise(asked)) or any(epoch >= train.epochs for epoch in asked):
        raise ConfigError(
            f"train.unfreeze has the epochs {asked}, which must rise and lie within the run of {train.epochs:g} epochs"
        )
    steps = [epochs.last_step_of(epoch) for epoch in asked]
    found = dict(zip(steps, (unfreezing.trainable for unfreezing in train.unfreeze), strict=True))
    if len(found) < len(steps) or 0 in found or num_train_steps in found:
        raise ConfigError(
            f"train.unfreeze has the epochs {asked}, and the run only {num_train_steps} steps, so that some would "
            "come at the same one; raise train.epochs, or lower train.global_batch_size"
        )
    return found


def _check_sizes(
    sizes: list[int], num_train_steps: int, image_size_px: int, backbone: str, min_image_size_px: int
) -> None:
    name = f"augment.progressive_sizes_px is {sizes}"
    if any(a >= b for a, b in itertools.pairwise(sizes)):
        raise ConfigError(f"{name}, which does not rise; order the sizes from small to large, each once")
    if sizes[-1] != image_size_px:
        raise ConfigError(
            f"{name}, whose last size is not the model's {image_size_px} px; end with {image_size_px}, or use --set "
            f"model.image_size_px={sizes[-1]}"
        )
    if sizes[0] < min_image_size_px:
        raise ConfigError(f"{name}, and {backbone} takes images of at least {min_image_size_px} px; start there")
    if len(sizes) > num_train_steps:
        raise ConfigError(
            f"{name}, and the run has {num_train_steps} steps, fewer than sizes; raise train.epochs or leave sizes out"
        )
