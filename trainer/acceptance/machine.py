"""The first checks: what the machine has, and a dataset and a network for the others."""

import pathlib

from trainer.acceptance.result import Result, failed, passed
from trainer.acceptance.work import Work
from trainer.system import atomic

MACHINE, DATASET = "machine", "dataset"
EXPECTED_MACHINE = "drivers, libraries, memory and ports without a problem"
EXPECTED_DATASET = "generated JPEG files become a dataset, none left out"
ENVIRONMENT_FILE = "environment.json"
_CLASS_NAMES = ("blue", "green", "grey", "red")
_COLORS = ((0.2, 0.3, 0.9), (0.2, 0.8, 0.3), (0.5, 0.5, 0.5), (0.9, 0.3, 0.2))
_NUM_CPU_REPLICAS = 2


def check_machine(work: Work) -> list[Result]:
    """Ask `trainer doctor` for problems, and find the device and the number of replicas of the other checks."""
    from trainer.system import environment, tf_runtime

    tf_runtime.configure()

    from trainer.doctor.frameworks import check_frameworks
    from trainer.doctor.gpus import check_gpus
    from trainer.doctor.machine import check_machine as check_parts

    gpus = tf_runtime.list_gpus()
    findings = [
        *check_frameworks(wants_horovod=False, wants_gpus=bool(gpus)),
        *check_gpus(work.num_gpus_wanted),
        *check_parts(work.directory),
    ]
    found = environment.collect()
    atomic.write_json(work.results_dir / ENVIRONMENT_FILE, found)
    num_replicas = work.num_gpus_wanted or len(gpus) or _NUM_CPU_REPLICAS
    if gpus:
        names = sorted({gpu["name"] or "a GPU without a name" for gpu in found["gpus"]})
        seen = f"{len(gpus)} x {', '.join(names)}; {num_replicas} used"
    else:
        seen = f"no GPU; {num_replicas} logical devices on {found['cpu']['num_usable_cores']} CPU cores"
    figures = {"device": "gpu" if gpus else "cpu", "num_replicas": num_replicas}
    problems = [finding for finding in findings if finding.verdict == "problem"]
    if problems:
        reason = "; ".join(f"{each.check}: {each.found} ({each.fix})" for each in problems)
        return [failed(MACHINE, EXPECTED_MACHINE, seen, reason, **figures)]
    return [passed(MACHINE, EXPECTED_MACHINE, seen, **figures)]


def check_dataset(work: Work) -> list[Result]:
    """Generate pictures and a small network, and prepare the pictures as a dataset."""
    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=False)

    import trainer
    from trainer.data.preparation.options import PrepareOptions

    pictures = work.dataset.with_name("pictures")
    num_bytes = _write_pictures(pictures, work.size.num_pictures, work.size.picture_px)
    _write_network(work.network)
    options = PrepareOptions(validation_fraction=0.1, test_fraction=0.0)
    manifest = trainer.prepare(pictures, work.dataset, options=options, note=print).manifest
    num_prepared = sum(split.num_examples for split in manifest.splits.values())
    seen = f"{num_prepared} of {work.size.num_pictures} pictures of {num_bytes / work.size.num_pictures / 1000:.0f} kB"
    if num_prepared != work.size.num_pictures:
        return [failed(DATASET, EXPECTED_DATASET, seen, f"bad_files.jsonl in {work.dataset} names the others")]
    return [passed(DATASET, EXPECTED_DATASET, seen, num_train=manifest.splits["train"].num_examples)]


def _write_pictures(directory: pathlib.Path, num_pictures: int, size_px: tuple[int, int]) -> int:
    """Write JPEG files, a folder for each class, and return the number of their bytes; always the same pictures."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    num_bytes = 0
    for i in range(num_pictures):
        name, color = _CLASS_NAMES[i % len(_CLASS_NAMES)], _COLORS[i % len(_COLORS)]
        # Soft shapes in the color of the class, and some grain: about the bytes of a photograph.
        shapes = Image.fromarray(random.integers(0, 256, [6, 8, 3], np.uint8)).resize(size_px, Image.Resampling.BICUBIC)
        grain = random.integers(-24, 25, [size_px[1], size_px[0], 1])
        pixels = 0.5 * np.asarray(shapes) + 128 * np.asarray(color) + grain
        path = directory / name / f"{i:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)
        num_bytes += path.stat().st_size
    return num_bytes


def _write_network(path: pathlib.Path) -> None:
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    x = pictures = keras.Input((None, None, 3), name="pictures")
    for i, (num_filters, strides) in enumerate(((16, 2), (32, 2), (32, 1))):
        x = layers.Conv2D(num_filters, 3, strides=strides, padding="same", use_bias=False, name=f"convolution_{i}")(x)
        x = layers.BatchNormalization(name=f"normalization_{i}")(x)
        x = layers.ReLU(name=f"relu_{i}")(x)
    keras.Model(pictures, x, name="small_network").save(path)
