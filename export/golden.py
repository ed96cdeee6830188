"""`EXPORT/golden.npz`: a few real images and what was answered to them, so that any machine can replay an export.

    images           [n, size, size, 3] uint8   at the model's size
    encoded          [total] uint8              the n encoded files, end to end
    encoded_lengths  [n] int64                  bytes of each
    class_ids        [n] int64                  the true classes; multi-hot, [n, classes], where there are several
    probabilities    [n, classes] float32       what the model itself answered
    answers/<title>  [n, classes] float32       what each artifact answered, by the title of its comparison

A zip of .npy files without pickled objects; the same bytes for the same arrays.
"""

import dataclasses
import io
import pathlib
import zipfile
import zlib

import numpy as np

from export.runtimes import Probabilities
from export.samples import Batch
from trainer.errors import ArtifactError

FILE_NAME = "golden.npz"
NUM_IMAGES = 16
_ANSWERS = "answers/"
# The earliest that a zip can say; the time of writing would make every export differ.
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Golden:
    """See the module; `answers` is keyed by `Comparison.title`."""

    batch: Batch
    probabilities: Probabilities
    answers: dict[str, Probabilities]

    def save(self, directory: pathlib.Path) -> None:
        arrays = {
            "images": self.batch.images,
            "encoded": np.frombuffer(b"".join(self.batch.encoded), np.uint8),
            "encoded_lengths": np.array([len(e) for e in self.batch.encoded], np.int64),
            "class_ids": self.batch.class_ids,
            "probabilities": self.probabilities,
            **{_ANSWERS + title: values for title, values in self.answers.items()},
        }
        with zipfile.ZipFile(directory / FILE_NAME, "w") as archive:
            for name, array in arrays.items():
                content = io.BytesIO()
                np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
                entry = zipfile.ZipInfo(f"{name}.npy", _ZIP_EPOCH)
                archive.writestr(entry, content.getvalue(), zipfile.ZIP_DEFLATED)

    @classmethod
    def load(cls, directory: pathlib.Path) -> "Golden":
        """Raises ArtifactError where the file is missing or not of this form."""
        path = directory / FILE_NAME
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            ends = np.cumsum(arrays["encoded_lengths"])
            encoded = [part.tobytes() for part in np.split(arrays["encoded"], ends[:-1])]
            return cls(
                batch=Batch(encoded, arrays["images"], arrays["class_ids"]),
                probabilities=arrays["probabilities"],
                answers={n.removeprefix(_ANSWERS): a for n, a in arrays.items() if n.startswith(_ANSWERS)},
            )
        except FileNotFoundError:
            raise ArtifactError(
                f"{directory} is not a finished export (it holds no {FILE_NAME}); export again"
            ) from None
        except (ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError) as e:
            raise ArtifactError(f"{path} does not hold golden images ({e}); copy the export again") from None
