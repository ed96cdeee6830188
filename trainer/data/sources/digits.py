"""`digits`: scikit-learn's 1,797 scanned handwritten digits, 8x8 pixels; part of the installation.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, https://doi.org/10.24432/C50P49.
"""

import functools
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.data.sources.candidate import Candidate, Source


class DigitsSource(Source):
    """Digits as grey PNG, classes "0" to "9"; the values 0 to 16 of the scans are scaled to 0 to 255."""

    name = "digits"
    class_names = tuple("0123456789")

    def candidates(self) -> Iterator[Candidate]:
        for index, label in enumerate(self._data.target):
            yield Candidate(filename=f"{index:05}.png", class_names=(str(label),))

    def read(self, candidate: Candidate) -> bytes:
        scan = self._data.images[int(candidate.filename.removesuffix(".png"))]
        return encode_grey_png(np.rint(scan * (255 / 16)).astype(np.uint8))

    @functools.cached_property
    def _data(self) -> Any:
        import sklearn.datasets  # slow to import

        return sklearn.datasets.load_digits()


def encode_grey_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode [height, width] as PNG, deterministically for one version of Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
