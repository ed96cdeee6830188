"""Images as the model sees them, made by `preview` and drawn in contact sheets and reports."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class SeenImage(NamedTuple):
    """An image as the model sees it: pixels [size, size, 3] uint8, and classes with shares, its own first."""

    pixels: npt.NDArray[np.uint8]
    parts: list[tuple[str, float]]

    def visible_parts(self) -> list[tuple[str, float]]:
        """Return the parts that do not round to 0%."""
        return [(name, share) for name, share in self.parts if share >= 0.005]


class SeenRow(NamedTuple):
    """One image as evaluated, and as augmented at each visit."""

    evaluation: SeenImage
    visits: list[SeenImage]
