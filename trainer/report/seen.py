"""Training images as the model saw them: decoded, cropped, changed and mixed as in the run."""

import dataclasses

import PIL.Image

from trainer.config.config import Config
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.storage import DatasetPath
from trainer.data.preview.seen_image import SeenImage
from trainer.errors import DataError
from trainer.report.pictures import embed
from trainer.run.run_dir import RunInfo

NUM_IMAGES = 4
NUM_VISITS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A class in an image, and its share of the image."""

    name: str
    share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeenPicture:
    uri: str
    is_pixel_art: bool
    parts: list[Part]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """Rows of equal length, each an image in evaluation and then in training; `missing` says why there are none."""

    rows: list[list[SeenPicture | None]]
    lead: str = ""
    missing: str | None = None

    @property
    def num_columns(self) -> int:
        return len(self.rows[0])


def load_seen(info: RunInfo, config: Config, dataset_dir: DatasetPath) -> Seen:
    """Load the first training images of the dataset as `info`'s run saw them."""
    from trainer.data.preview.preview import load_preview

    try:
        if Manifest.load(dataset_dir).content_hash() != info.dataset_hash:
            raise DataError(f"{dataset_dir} holds another dataset now than the one that the run was trained on")
        rows = load_preview(
            dataset_dir,
            config=config,
            image_size_px=info.image_size_px,
            num_images=NUM_IMAGES,
            num_visits=NUM_VISITS,
        )
    except DataError as e:
        return Seen(rows=[], missing=str(e))
    num_visits = max(len(row.visits) for row in rows)
    pictures: list[list[SeenPicture | None]] = []
    for row in rows:
        shown = [_picture(image) for image in (row.evaluation, *row.visits)]
        pictures.append([*shown, *[None] * (1 + num_visits - len(shown))])
    return Seen(rows=pictures, lead=_lead(num_visits, config.augment.preset))


def _lead(num_visits: int, preset: str) -> str:
    if num_visits <= 1:
        return "Each image first as in evaluation, then as in training: nothing random is done to it."
    return (
        f"Each image first as in evaluation, then as in training at its first {num_visits} visits, changed by the "
        f"preset {preset} and the other settings of augment. Shares are those of the classes in a mixed image."
    )


def _picture(seen: SeenImage) -> SeenPicture:
    uri, is_pixel_art = embed(PIL.Image.fromarray(seen.pixels))
    parts = [Part(name=name, share=share) for name, share in seen.visible_parts()]
    return SeenPicture(uri=uri, is_pixel_art=is_pixel_art, parts=parts)
