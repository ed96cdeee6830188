"""Compare `trainer prepare` with a single process that does the same with tf.io.

    python benchmarks/prepare.py

The rival reads each file, checks it by decoding, and writes it as a tf.train.Example with tf.io.TFRecordWriter; it
makes no splits, does not shuffle, and stops at the first bad file. Both start as fresh processes, including the import
of TensorFlow, take turns on the same folder, and must end with the same number of images. Exit status 1 if the median
ratio is below `MIN_RATIO`.

    --kind png       Fashion-MNIST (28 x 28, Debian package dataset-fashion-mnist), one PNG file each
    --kind jpeg      500 x 375 photographs: crops of scikit-learn's two sample images with noise, quality 88
    --memory         instead: peak memory for --num-images and for twice as many; status 1 if it grows by more than
                     `MAX_GROWTH`
"""

import argparse
import io
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

MIN_RATIO = 1.5
MAX_GROWTH = 1.1


def make_png_folder(folder: pathlib.Path, num_images: int) -> None:
    """Write `num_images` pictures of Fashion-MNIST, repeated if necessary, in a folder per class."""
    from trainer.data.sources import open_source

    source = open_source("fashion-mnist")
    candidates = list(source.candidates())
    for i in range(num_images):
        candidate = candidates[i % len(candidates)]
        path = folder / candidate.class_names[0].replace("/", "-") / f"{i:07}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read(candidate))


def make_jpeg_folder(folder: pathlib.Path, num_images: int) -> None:
    """Write `num_images` different photographs in two classes."""
    import sklearn.datasets

    rng = np.random.default_rng(0)
    for name in ("china.jpg", "flower.jpg"):
        (folder / name[:-4]).mkdir(parents=True)
    photographs = {name: sklearn.datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")}
    for i in range(num_images):
        name = ("china.jpg", "flower.jpg")[i % 2]
        height, width, _ = photographs[name].shape
        y, x = rng.integers(height - 375), rng.integers(width - 500)
        crop = photographs[name][y : y + 375, x : x + 500]
        noise = rng.integers(-6, 7, crop.shape, np.int16)
        buffer = io.BytesIO()
        Image.fromarray((crop + noise).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
        (folder / name[:-4] / f"{i:07}.jpg").write_bytes(buffer.getvalue())


def run_rival(folder: str, out: str) -> None:
    """Run the rival on `folder`, which has a folder of images per class."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    num_images = 0
    with tf.io.TFRecordWriter(out) as writer:
        for label, class_name in enumerate(sorted(os.listdir(folder))):
            for name in sorted(os.listdir(os.path.join(folder, class_name))):
                with open(os.path.join(folder, class_name, name), "rb") as f:
                    encoded = f.read()
                # Eagerly: a tf.function takes longer for each call.
                height, width, _ = tf.io.decode_image(encoded, channels=3, expand_animations=False).shape
                feature = {
                    "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
                    "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                    "image/filename": tf.train.Feature(bytes_list=tf.train.BytesList(value=[name.encode()])),
                    "image/height": tf.train.Feature(int64_list=tf.train.Int64List(value=[height])),
                    "image/width": tf.train.Feature(int64_list=tf.train.Int64List(value=[width])),
                }
                example = tf.train.Example(features=tf.train.Features(feature=feature))
                writer.write(example.SerializeToString())
                num_images += 1
    print(json.dumps({"num_images": num_images}))


def time_ours(folder: pathlib.Path, out: pathlib.Path) -> tuple[float, int]:
    """Return wall seconds and number of images of `trainer prepare`."""
    command = [str(pathlib.Path(sys.executable).with_name("trainer")), "prepare", str(folder), "--out", str(out)]
    secs, answer = time_once([*command, "--json"])
    return secs, sum(split["num_examples"] for split in json.loads(answer)["splits"].values())


def time_rival(folder: pathlib.Path, out: pathlib.Path) -> tuple[float, int]:
    """Return wall seconds and number of images of the rival."""
    secs, answer = time_once([sys.executable, __file__, "--rival", str(folder), str(out)])
    return secs, json.loads(answer)["num_images"]


def time_once(command: list[str]) -> tuple[float, str]:
    """Return the wall seconds of a process that must succeed, and its output."""
    started = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    secs = time.perf_counter() - started
    if ended.returncode:
        sys.exit(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return secs, ended.stdout


def compare(folder: pathlib.Path, work: pathlib.Path, *, num_pairs: int, num_images: int) -> int:
    """Print each pair and the ratios; return the exit status."""
    ratios = []
    for pair in range(num_pairs):
        secs = {}
        # The order alternates, so that neither always finds the disk as the other left it.
        for name in ("ours", "rival")[:: 1 if pair % 2 else -1]:
            out = work / name
            secs[name], found = (time_ours if name == "ours" else time_rival)(folder, out)
            if found != num_images:
                sys.exit(f"{name} holds {found:,} images of {num_images:,}")
            shutil.rmtree(out) if out.is_dir() else out.unlink()
        ratios.append(secs["rival"] / secs["ours"])
        print(f"pair {pair + 1}: ours {secs['ours']:.2f} s, rival {secs['rival']:.2f} s, ratio {ratios[-1]:.2f}")
    median = statistics.median(ratios)
    print(f"ratio {median:.2f} (median of {num_pairs}, {min(ratios):.2f} to {max(ratios):.2f}; at least {MIN_RATIO})")
    return 0 if median >= MIN_RATIO else 1


def compare_memory(folder: pathlib.Path, twice: pathlib.Path, work: pathlib.Path) -> int:
    """Print peak memory for both folders; return the exit status."""
    peaks = [peak_bytes_of(folder, work / "one"), peak_bytes_of(twice, work / "two")]
    growth = peaks[1] / peaks[0]
    print(f"peak memory {peaks[0] / 1e6:.0f} MB, of twice as many images {peaks[1] / 1e6:.0f} MB")
    print(f"ratio {growth:.3f} (at most {MAX_GROWTH})")
    return 0 if growth <= MAX_GROWTH else 1


def peak_bytes_of(folder: pathlib.Path, out: pathlib.Path) -> int:
    """Return the peak memory of `trainer prepare`, run from another process that counts its children's."""
    command = [sys.executable, __file__, "--peak-of", str(folder), str(out)]
    return int(time_once(command)[1])


def print_peak(folder: str, out: str) -> None:
    time_ours(pathlib.Path(folder), pathlib.Path(out))
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["png", "jpeg"], default="png")
    parser.add_argument("--num-images", type=int, default=70_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    for name in ("--rival", "--peak-of"):
        parser.add_argument(name, nargs=2, metavar=("FOLDER", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rival:
        run_rival(*arguments.rival)
        return 0
    if arguments.peak_of:
        print_peak(*arguments.peak_of)
        return 0
    make_folder = make_png_folder if arguments.kind == "png" else make_jpeg_folder
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        make_folder(work / "images", arguments.num_images)
        if arguments.memory:
            make_folder(work / "twice", 2 * arguments.num_images)
            return compare_memory(work / "images", work / "twice", work)
        return compare(work / "images", work, num_pairs=arguments.pairs, num_images=arguments.num_images)


if __name__ == "__main__":
    sys.exit(main())
