"""`fashion-mnist`: 70,000 pictures of clothes, 28x28 pixels, from the IDX files of Debian's package or a folder.

Source: Xiao, Rasul, Vollgraf 2017, https://arxiv.org/abs/1708.07747. The IDX format (big-endian: magic number with
the number of dimensions in its last byte, the dimensions, the values) is from Y. LeCun's MNIST page.
"""

import functools
import gzip
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from trainer.data.sources.candidate import Candidate, Source
from trainer.data.sources.digits import encode_grey_png
from trainer.errors import DataError

DEBIAN_FOLDER = pathlib.Path("/usr/share/datasets/fashion-mnist")
_UBYTE_MAGIC = b"\0\0\x08"
_GZIP_MAGIC = b"\x1f\x8b"


class FashionMnistSource(Source):
    """Fashion-MNIST; the "t10k" files are the test split, and `prepare` cuts validation from the "train" files."""

    name = "fashion-mnist"
    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )

    def __init__(self, folder: pathlib.Path | None = None) -> None:
        """Find the four IDX files, plain or with .gz, in `folder`; None for that of Debian's package.

        Raises:
            DataError: a file is missing.
        """
        self._folder = folder or DEBIAN_FOLDER
        self._is_debian = folder is None
        self._files = {
            part: (self._find(f"{part}-images-idx3-ubyte"), self._find(f"{part}-labels-idx1-ubyte"))
            for part in ("train", "t10k")
        }

    @classmethod
    def of_text(cls, text: str) -> "FashionMnistSource":
        """Open the source `fashion-mnist` or `fashion-mnist:FOLDER`."""
        _, colon, folder = text.partition(":")
        if colon and not folder:
            raise DataError(f"the source {text!r} names no folder; write fashion-mnist, or fashion-mnist:FOLDER")
        return cls(pathlib.Path(folder) if colon else None)

    def candidates(self) -> Iterator[Candidate]:
        for part in ("train", "t10k"):
            images, labels = self._parts[part]
            if len(images) != len(labels):
                raise DataError(
                    f"{self._folder} has {len(images)} images and {len(labels)} labels in its {part} files; "
                    "expected equal numbers: copy the files again"
                )
            if labels.size and labels.max() >= len(self.class_names):
                raise DataError(f"the {part} labels in {self._folder} go up to {labels.max()}; expected 0 to 9")
            for index, label in enumerate(labels.tolist()):
                yield Candidate(
                    filename=f"{part}/{index:05}.png",
                    class_names=(self.class_names[label],),
                    split="test" if part == "t10k" else None,
                )

    def read(self, candidate: Candidate) -> bytes:
        part, _, name = candidate.filename.partition("/")
        images, _ = self._parts[part]
        return encode_grey_png(images[int(name.removesuffix(".png"))])

    @functools.cached_property
    def _parts(self) -> dict[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
        return {
            part: (read_idx(images, num_dimensions=3), read_idx(labels, num_dimensions=1))
            for part, (images, labels) in self._files.items()
        }

    def _find(self, name: str) -> pathlib.Path:
        for path in (self._folder / name, self._folder / f"{name}.gz"):
            if path.is_file():
                return path
        fix = (
            "install it with: apt-get install dataset-fashion-mnist, or give fashion-mnist:FOLDER"
            if self._is_debian
            else "give the folder with the four IDX files of Fashion-MNIST"
        )
        raise DataError(f"fashion-mnist: {self._folder} holds neither {name} nor {name}.gz; {fix}")


def read_idx(path: pathlib.Path, *, num_dimensions: int) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or not, as [n] or [n, height, width].

    Raises:
        DataError: the file is not IDX, has other dimensions, or more or fewer values than declared.
    """
    content = path.read_bytes()
    if content.startswith(_GZIP_MAGIC):
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as e:
            raise DataError(f"{path} is not a complete gzip file ({e}); copy it again") from None
    if content[:4] != _UBYTE_MAGIC + bytes([num_dimensions]) or len(content) < 4 + 4 * num_dimensions:
        raise DataError(
            f"{path} begins with {content[:4].hex(' ') or 'nothing'}; expected an IDX file of unsigned bytes in "
            f"{num_dimensions} dimension{'s' if num_dimensions > 1 else ''}: copy it again"
        )
    shape = np.frombuffer(content, ">u4", num_dimensions, offset=4).tolist()
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions)
    if values.size != np.prod(shape, dtype=object):
        raise DataError(f"{path} holds {values.size} values where its header says {shape}; copy it again")
    return values.reshape(shape)
