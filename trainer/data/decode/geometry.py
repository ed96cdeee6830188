"""How an image of any size becomes the model's square input."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """The crop and resize of an image of any size to [image_size_px, image_size_px, 3].

    resize: "crop" resizes the largest centred square, "squash" the whole image.
    """

    image_size_px: int
    resize: Literal["crop", "squash"]
