"""The control of the harness: Keras's `fit` with `BackupAndRestore`, killed in the same way.

The network, the images and the optimizer are those of the harness. The program does all that Keras's documentation
asks for: seeds, a shuffled tf.data pipeline, the callback, and the same command again after each kill.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import random
import shutil
import time
from collections.abc import Iterator
from typing import Any, Final

from tests import small_backbone
from tests.chaos import jobs

_EPOCHS, _BATCH, _SAVE_EVERY = 3, 64, 3
_SEED: Final = 0


def train(work: pathlib.Path, *, double_checkpoint: bool) -> None:
    """Train from the last backup in `work`; at the end, write the SHA-256 of the weights and the number of updates."""
    import keras
    import numpy as np
    import sklearn.datasets
    import tensorflow as tf

    keras.utils.set_random_seed(_SEED)
    backbone = keras.models.load_model(small_backbone.PATH, compile=False)
    layers = keras.layers
    model = keras.Sequential([backbone, layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(10)])
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    digits = sklearn.datasets.load_digits()
    images = np.repeat(digits.images[..., None].astype(np.float32) / 16, 3, axis=-1).repeat(2, axis=1).repeat(2, axis=2)
    data = tf.data.Dataset.from_tensor_slices((images, digits.target))
    data = data.shuffle(len(images), seed=_SEED, reshuffle_each_iteration=True).batch(_BATCH)

    backup = keras.callbacks.BackupAndRestore(
        str(work / "backup"), save_freq=_SAVE_EVERY, double_checkpoint=double_checkpoint
    )
    model.fit(data, epochs=_EPOCHS, verbose=0, callbacks=[backup])
    digest = hashlib.sha256()
    for array in [*model.get_weights(), *(variable.numpy() for variable in model.optimizer.variables)]:
        digest.update(np.ascontiguousarray(array).tobytes())
    end = {"sha256": digest.hexdigest(), "num_updates": int(model.optimizer.iterations)}
    (work / "end.json").write_text(json.dumps(end))


def run_control(work: pathlib.Path, *, seed: str, kills_per_run: int) -> Iterator[dict[str, Any]]:
    """Yield the results of one run after the other; the first two are not killed, and show that the program repeats."""
    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=False)
    import keras  # noqa: F401
    import sklearn.datasets  # noqa: F401

    reference, total_secs, number = None, 0.0, 0
    while True:
        started_secs, is_reference = time.monotonic(), number < 2
        with _empty(work / f"control-{os.getpid()}") as place:
            line = _run_once(
                place, f"{seed}/control/{number}", number, 0 if is_reference else kills_per_run, total_secs
            )
        if is_reference:
            total_secs, reference = time.monotonic() - started_secs, reference or line["sha256"]
        kind = "control reference" if is_reference else "control"
        yield {"kind": kind, **line, "is_equal": line["sha256"] == reference}
        number += 1


def _run_once(place: pathlib.Path, seed: str, number: int, num_kills: int, total_secs: float) -> dict[str, Any]:
    """Run the program in `place` until it ends by itself, after up to `num_kills` kills."""
    chance, is_double = random.Random(seed), bool(number % 2)
    num_killed = num_torn = 0
    error, end = None, {"sha256": None, "num_updates": None}
    while True:
        job = jobs.fork(lambda: train(place, double_checkpoint=is_double), place / "output.txt")
        if num_killed < num_kills:
            if chance.random() < 0.5:
                _wait_for_write(job, place / "backup" / "latest.weights.h5", chance)
            else:
                _sleep_or_end(job, chance.random() * total_secs)
            jobs.kill(job.processes())
        status = job.wait()
        if status == 0:
            end = json.loads((place / "end.json").read_text(encoding="utf-8"))
            break
        if status > 0:
            error = job.output().strip().splitlines()[-1][:300]
            break
        num_killed += 1
        num_torn += _is_torn(place / "backup")
    return {
        "seed": seed,
        "double_checkpoint": is_double,
        "num_kills": num_killed,
        "num_expected": _EPOCHS * -(-1797 // _BATCH),
        "num_torn": num_torn,
        "error": error,
        **end,
    }


@contextlib.contextmanager
def _empty(place: pathlib.Path) -> Iterator[pathlib.Path]:
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def _is_torn(backup: pathlib.Path) -> bool:
    """Return whether a file of the backup cannot be opened."""
    import h5py

    for file in backup.rglob("*.h5"):
        try:
            with h5py.File(file, "r"):
                pass
        except OSError:
            return True
    return False


def _wait_for_write(job: jobs.Job, file: pathlib.Path, chance: random.Random) -> None:
    """Return a few milliseconds after one of the next changes of `file`, or when the job has ended."""
    number, seen = chance.randint(1, 20), None
    while number and job.status() is None:
        try:
            now = file.stat().st_mtime_ns
        except FileNotFoundError:
            now = None
        if now != seen:
            seen, number = now, number - 1
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.005))


def _sleep_or_end(job: jobs.Job, secs: float) -> None:
    until = time.monotonic() + secs
    while job.status() is None and time.monotonic() < until:
        time.sleep(0.005)
