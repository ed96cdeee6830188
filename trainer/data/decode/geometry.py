"""The value object that says how an image of any size becomes the model's square input."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """From an image of any size to [image_size_px, image_size_px, 3].

    resize: "crop" takes the largest centred square, "squash" the whole image, before the resize.
    """

    image_size_px: int
    resize: Literal["crop", "squash"]
