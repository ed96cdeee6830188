"""Images as the model sees them, with what they show: what `preview` makes, and contact sheet and report draw."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class SeenImage(NamedTuple):
    """Pixels [size, size, 3] uint8, and the classes in them with their shares, the image's own first."""

    pixels: npt.NDArray[np.uint8]
    parts: list[tuple[str, float]]

    def visible_parts(self) -> list[tuple[str, float]]:
        """Without a part that rounds to 0%."""
        return [(name, share) for name, share in self.parts if share >= 0.005]


class SeenRow(NamedTuple):
    """One image as evaluation sees it, and as training does, visit after visit."""

    evaluation: SeenImage
    visits: list[SeenImage]
