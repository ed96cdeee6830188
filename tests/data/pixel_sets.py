"""Small datasets of real JPEGs, PNGs and weights, written with the project's own writer."""

import io
import pathlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from trainer.data.dataset.manifest import Manifest, Split, SplitName
from trainer.data.dataset.records import Example, ShardWriter


def encode(image: Image.Image, format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": 90} if format == "JPEG" else {}))
    return buffer.getvalue()


def photographs(num: int, *, width: int, height: int, seed: int = 0) -> list[Image.Image]:
    """Different crops of the two sample photographs of scikit-learn."""
    random = np.random.default_rng(seed)
    sources = [Image.fromarray(image) for image in load_sample_images().images]
    images = []
    for i in range(num):
        source = sources[i % 2]
        share = random.uniform(0.4, 0.9)
        crop_width = int(min(source.width, source.height * width / height) * share)
        crop_height = int(crop_width * height / width)
        left, top = (int(random.integers(0, n + 1)) for n in (source.width - crop_width, source.height - crop_height))
        crop = source.crop((left, top, left + crop_width, top + crop_height))
        images.append(crop.resize((width, height), Image.Resampling.BICUBIC))
    return images


def write_dataset(
    directory: pathlib.Path,
    encoded: list[bytes],
    *,
    splits: tuple[SplitName, ...] = ("train", "validation"),
    weights: list[float] | None = None,
) -> pathlib.Path:
    """The same examples in every split, of two classes in turn."""
    directory.mkdir(parents=True, exist_ok=True)
    written = {}
    for split in splits:
        with ShardWriter(directory, f"{split}-00000-of-00001") as writer:
            for i, content in enumerate(encoded):
                writer.write(
                    Example(
                        encoded=content,
                        labels=(i % 2,),
                        format="jpeg" if content.startswith(b"\xff\xd8") else "png",
                        filename=f"{i}",
                        height=1,
                        width=1,
                        weight=weights[i] if weights else 1.0,
                    )
                )
        counts = [(len(encoded) + 1) // 2, len(encoded) // 2]
        written[split] = Split(num_examples=len(encoded), class_counts=counts, shards=[writer.shard])
    Manifest(name="photographs", source="test", class_names=["even", "odd"], seed=0, splits=written).save(directory)
    return directory
