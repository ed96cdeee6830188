"""Compare our input pipeline with Keras's loader, a plain TFRecord pipeline and the decoder itself.

    python benchmarks/input.py

    keras     keras.utils.image_dataset_from_directory, batched, cropped to the aspect ratio and prefetched as in its
              documentation. Its images all have one size, so in training geometry it loads 256 px squares and crops
              them with tf.image.crop_and_resize.
    tfrecord  the same shards through interleave, shuffle, parallel map, decode_jpeg, sample_distorted_bounding_box or
              the centred square, tf.image.resize, batch, prefetch
    same      tfrecord in evaluation geometry with antialiasing, and so with our exact pixels; keras and tfrecord have
              no antialiasing
    ceiling   only our decode call, on bytes in memory, on all cores
    decoder   only tf.io.decode_jpeg, on bytes in memory, on all cores: the upper bound for whole pictures
    cache     our pipeline, from decoded images in memory

All produce uint8 images of 224 px in batches of 64. They take turns, each with a new iterator, so that other load on
the machine affects all of them. Prints the median and range of the turns, our rate over theirs (median over rounds),
and processor time per image. Exit status 1 if our pictures and the rivals' differ.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any, NamedTuple

from trainer.system import tf_runtime

tf_runtime.configure(use_gpus=False)

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from PIL import Image  # noqa: E402
from sklearn.datasets import load_sample_images  # noqa: E402

from trainer.data.augmentation.presets import PRESETS, Augmentation  # noqa: E402
from trainer.data.decode.geometry import Geometry  # noqa: E402
from trainer.data.decode.preprocess import load_image  # noqa: E402
from trainer.data.input.input_benchmark import decode_ceiling  # noqa: E402
from trainer.data.input.pipeline import TrainingStream, open_split  # noqa: E402
from trainer.data.input.pixel_cache import open_pixels  # noqa: E402
from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset  # noqa: E402
from trainer.data.sampling.order import ExampleOrder  # noqa: E402
from trainer.distribute.topology import BatchDivision, Topology  # noqa: E402

SIZE_PX, BATCH_SIZE, LOADED_PX = 224, 64, 256
NUM_FILES = {(500, 375): 384, (1600, 1200): 192}
# Only the crop: other augmentation runs on the device.
TRAINING = dataclasses.replace(PRESETS["none"], min_crop_area=PRESETS["medium"].min_crop_area)
# Between pictures averaged over 8 x 8 px, which hides antialiasing and shows geometry.
MAX_MEAN_DIFFERENCE = 3.0
MANY_STEPS = 2**40


class Turn(NamedTuple):
    images_per_sec: float
    cpu_secs_per_image: float


def make_photographs(folder: pathlib.Path, width: int, height: int, num_files: int) -> None:
    """Write distinct crops of scikit-learn's two photographs, scaled and mirrored, as JPEGs in two classes."""
    random = np.random.default_rng(0)
    sources = [Image.fromarray(image) for image in load_sample_images().images]
    for i in range(num_files):
        source = sources[i % 2]
        share = random.uniform(0.5, 1.0)
        crop_width = int(min(source.width, source.height * width / height) * share)
        crop_height = int(crop_width * height / width)
        left, top = (int(random.integers(0, n + 1)) for n in (source.width - crop_width, source.height - crop_height))
        image = source.crop((left, top, left + crop_width, top + crop_height)).resize((width, height))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        (folder / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{i % 2}" / f"{i:04}.jpg", quality=90)


def our_stream(dataset_dir: pathlib.Path, augmentation: Augmentation, *, cached: bool = False) -> TrainingStream:
    reader = open_split(dataset_dir, "train")
    geometry = Geometry(image_size_px=SIZE_PX, resize="crop")
    return TrainingStream(
        reader=reader,
        order=ExampleOrder(reader.num_examples, 0),
        geometry=geometry,
        augmentation=augmentation,
        division=BatchDivision(BATCH_SIZE, 1),
        topology=Topology(strategy="single", device="cpu", num_local_replicas=1),
        num_positions=2**62,
        pixels=open_pixels(dataset_dir, "train", geometry, location="memory") if cached else None,
    )


def keras_loader(folder: pathlib.Path, is_training: bool) -> Any:
    side = LOADED_PX if is_training else SIZE_PX
    dataset = keras.utils.image_dataset_from_directory(
        folder, image_size=(side, side), batch_size=BATCH_SIZE, crop_to_aspect_ratio=True, seed=0, verbose=False
    )

    def crop(images: Any, labels: Any) -> Any:
        num = tf.shape(images)[0]
        area = tf.random.uniform([num], TRAINING.min_crop_area, 1.0)
        aspect = tf.exp(tf.random.uniform([num], np.log(3 / 4), np.log(4 / 3)))
        height, width = (tf.minimum(tf.sqrt(a), 1.0) for a in (area / aspect, area * aspect))
        top, left = (tf.random.uniform([num]) * (1.0 - extent) for extent in (height, width))
        boxes = tf.stack([top, left, top + height, left + width], axis=1)
        return tf.image.crop_and_resize(images, boxes, tf.range(num), [SIZE_PX, SIZE_PX]), labels

    dataset = dataset.repeat()
    if is_training:
        dataset = dataset.map(crop, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.map(lambda x, y: (tf.cast(x, tf.uint8), y), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def centred_square(image: Any) -> Any:
    height, width = tf.unstack(tf.shape(image)[:2])
    side = tf.minimum(height, width)
    return tf.image.crop_to_bounding_box(image, (height - side) // 2, (width - side) // 2, side, side)


def random_crop(image: Any) -> Any:
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros([1, 0, 4]),
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(TRAINING.min_crop_area, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.slice(image, begin, size)


def plain_tfrecord(dataset_dir: pathlib.Path, is_training: bool, *, antialias: bool = False) -> Any:
    files = sorted(str(path) for path in dataset_dir.glob("train-*.tfrecord"))
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    }

    def load(record: Any) -> Any:
        parsed = tf.io.parse_single_example(record, features)
        image = tf.io.decode_jpeg(parsed["image/encoded"], channels=3)
        image = random_crop(image) if is_training else centred_square(image)
        resized = tf.image.resize(image, [SIZE_PX, SIZE_PX], antialias=antialias)
        return tf.cast(resized, tf.uint8), parsed["image/class/label"]

    dataset = tf.data.Dataset.from_tensor_slices(files)
    dataset = dataset.interleave(tf.data.TFRecordDataset, num_parallel_calls=tf.data.AUTOTUNE).repeat().shuffle(256)
    return dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)


def decoder_alone(folder: pathlib.Path) -> Any:
    encoded = [path.read_bytes() for path in sorted(folder.glob("*/*.jpg"))[:128]]
    dataset = tf.data.Dataset.from_tensor_slices(encoded).repeat()
    dataset = dataset.map(lambda e: tf.io.decode_jpeg(e, channels=3)[0, 0, 0], num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(BATCH_SIZE)


def take_turn(dataset: Any, secs: float) -> Turn:
    batches = iter(dataset)
    warm_until = time.perf_counter() + secs / 2
    while time.perf_counter() < warm_until:
        next(batches)
    num_images, started, cpu_started = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - started) < secs:
        next(batches)
        num_images += BATCH_SIZE
    return Turn(num_images / elapsed, (time.process_time() - cpu_started) / num_images)


def mean_difference(folder: pathlib.Path) -> float:
    """Return the mean difference of our evaluation pictures from the rivals', over 16 files."""
    geometry = Geometry(image_size_px=SIZE_PX, resize="crop")
    differences = []
    for path in sorted(folder.glob("*/*.jpg"))[:16]:
        encoded = tf.io.read_file(str(path))
        theirs = tf.image.resize(centred_square(tf.io.decode_jpeg(encoded, channels=3)), [SIZE_PX, SIZE_PX])
        pair = tf.stack([tf.cast(load_image(encoded, geometry), tf.float32), theirs])
        ours_small, theirs_small = tf.unstack(tf.nn.avg_pool2d(pair, 8, 8, "VALID"))
        differences.append(float(tf.reduce_mean(tf.abs(ours_small - theirs_small))))
    return statistics.mean(differences)


def compare(folder: pathlib.Path, dataset_dir: pathlib.Path, geometry: str, num_rounds: int, secs: float) -> None:
    is_training = geometry == "training"
    ours = our_stream(dataset_dir, TRAINING if is_training else PRESETS["none"])
    contenders = {
        "ours": ours.dataset(0, MANY_STEPS),
        "keras": keras_loader(folder, is_training),
        "tfrecord": plain_tfrecord(dataset_dir, is_training),
        "ceiling": decode_ceiling(ours),
        "decoder": decoder_alone(folder),
    }
    if not is_training:
        contenders["same"] = plain_tfrecord(dataset_dir, is_training, antialias=True)
        contenders["cache"] = our_stream(dataset_dir, PRESETS["none"], cached=True).dataset(0, MANY_STEPS)
    rounds = [{name: take_turn(dataset, secs) for name, dataset in contenders.items()} for _ in range(num_rounds)]
    for name in contenders:
        rates = [turns[name].images_per_sec for turns in rounds]
        ratios = [turns["ours"].images_per_sec / turns[name].images_per_sec for turns in rounds]
        cpu = statistics.median(turns[name].cpu_secs_per_image for turns in rounds)
        print(
            f"  {geometry:10s} {name:9s} {statistics.median(rates):8,.0f} images/s ({min(rates):,.0f} to "
            f"{max(rates):,.0f})   ours / it {statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            f"   {cpu * 1e3:6.2f} ms of processor an image",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=float, default=2.0, help="of one turn")
    arguments = parser.parse_args()
    status = 0
    for (width, height), num_files in NUM_FILES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder, dataset_dir = pathlib.Path(temporary, "images"), pathlib.Path(temporary, "dataset")
            make_photographs(folder, width, height, num_files)
            prepare_dataset(str(folder), dataset_dir, options=PrepareOptions())
            difference = mean_difference(folder)
            print(f"{width} x {height}, {num_files} files; pictures differ by {difference:.2f} of 255", flush=True)
            if difference > MAX_MEAN_DIFFERENCE:
                status = 1
            for geometry in ("evaluation", "training"):
                compare(folder, dataset_dir, geometry, arguments.rounds, arguments.secs)
    return status


if __name__ == "__main__":
    sys.exit(main())
