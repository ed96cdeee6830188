"""Augmentation presets, and how a configuration overrides them.

Every change is keyed by (seed, visit, example), see `order.Draws`: the same on any number of workers. The random crop
is part of decoding on the host (`random_crop`); all else is drawn on the host (`changes`) and applied to whole batches
on the device (`on_device`).

    preset                   none  light  medium  strong
    least area of the crop   1     0.7    0.35    0.08
    flip                     -     -      yes     yes
    rotation, shift, zoom    -     -      -       -
    colour jitter            -     -      0.2     -
    RandAugment              -     -      -       2 layers of magnitude 7
    random erasing           -     -      0.1     -
    mixup, CutMix            -     -      -       alpha 0.1 and 1.0, half of the pairs each
"""

import dataclasses

from trainer.config.data import AugmentConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Resolved augmentation settings. For the fields see `config.AugmentConfig`."""

    min_crop_area: float
    flip: bool
    rotation_degrees: float
    shift: float
    zoom: float
    color_jitter: float
    randaugment_layers: int
    randaugment_magnitude: float
    erasing: float
    mixup_alpha: float
    cutmix_alpha: float

    @property
    def crops(self) -> bool:
        """True if the pixels that leave the host differ from visit to visit."""
        return self.min_crop_area < 1

    @property
    def mixes(self) -> bool:
        """True if pairs of images and their labels are mixed."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    @property
    def warps(self) -> bool:
        """True if images are rotated, shifted or zoomed, apart from RandAugment's warps."""
        return any((self.rotation_degrees, self.shift, self.zoom))

    @property
    def changes_on_device(self) -> bool:
        return self.flip or self.warps or self.mixes or any((self.color_jitter, self.randaugment_layers, self.erasing))


_NOTHING = Augmentation(
    min_crop_area=1.0,
    flip=False,
    rotation_degrees=0.0,
    shift=0.0,
    zoom=0.0,
    color_jitter=0.0,
    randaugment_layers=0,
    randaugment_magnitude=9.0,
    erasing=0.0,
    mixup_alpha=0.0,
    cutmix_alpha=0.0,
)
# No preset below medium flips images: digits, text and traffic signs do not survive it.
_LIGHT = dataclasses.replace(_NOTHING, min_crop_area=0.7)
_MEDIUM = dataclasses.replace(_NOTHING, min_crop_area=0.35, flip=True, color_jitter=0.2, erasing=0.1)
# After recipe A2 for ResNets (Wightman et al. 2021, arXiv:2110.00476, table 2), which does not erase: CutMix already
# hides parts of images.
_STRONG = dataclasses.replace(
    _MEDIUM,
    min_crop_area=0.08,
    color_jitter=0.0,
    randaugment_layers=2,
    randaugment_magnitude=7.0,
    erasing=0.0,
    mixup_alpha=0.1,
    cutmix_alpha=1.0,
)
PRESETS = {"none": _NOTHING, "light": _LIGHT, "medium": _MEDIUM, "strong": _STRONG}


def resolve_augmentation(config: AugmentConfig) -> Augmentation:
    """Return the preset of `config`, overridden by each setting that is not null."""
    names = {field.name for field in dataclasses.fields(Augmentation)}
    given = {name: value for name, value in config.model_dump(include=names).items() if value is not None}
    return dataclasses.replace(PRESETS[config.preset], **given)
