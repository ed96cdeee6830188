"""Compare our training step with Keras's fit, and break down its time.

    python benchmarks/scaling.py

    single       one replica on the whole machine
    mirrored     MirroredStrategy, two replicas on logical CPU devices
    horovod      two processes over Gloo
    keras        model.fit of the same model, optimizer and batch under MirroredStrategy, two replicas, from images in
                 memory, batched, shuffled and prefetched; TensorFlow with oneDNN
    keras_tuned  the same with our process's settings of memory and threads

All fine-tune EfficientNet-Lite0 on scikit-learn's digits at 64 px in global batches of 32: SGD with momentum, frozen
batch statistics, float32, no XLA (which Keras lacks under a strategy). Each has its own process, and they take turns,
so that other load on the machine affects all of them. Prints median and range of the step time, and Keras's time over
ours in each round; then the parts of our step. Exit status 1 if our first losses and Keras's differ.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from trainer.system import tf_runtime

if "keras" in sys.argv:
    os.environ.update(KERAS_BACKEND="tensorflow", TF_ENABLE_ONEDNN_OPTS="1", TF_CPP_MIN_LOG_LEVEL="2")
else:
    tf_runtime.configure(use_gpus=False)

import keras
import numpy as np
import tensorflow as tf

from benchmarks.step_times import time_steps
from trainer.config.config import Config, load_config
from trainer.data.dataset.storage import parse_path
from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset
from trainer.distribute import horovod, mirrored
from trainer.distribute.engine import Engine
from trainer.distribute.topology import Topology
from trainer.model.classifier import build_classifier
from trainer.model.weights import load_pretrained
from trainer.plan.plan import Plan, make_plan
from trainer.step.train_step import TrainStep
from trainer.training.batches import make_steps, staged_batches
from trainer.training.input import make_training_stream, open_caches
from trainer.training.make_state import make_state
from trainer.training.memory import MemoryPolicy
from trainer.training.staged_step import StagedStep

GLOBAL_BATCH_SIZE, SIZE_PX, LEARNING_RATE, MOMENTUM, SEED = 32, 64, 0.01, 0.9, 0
NUM_GATE_STEPS = 3
MAX_LOSS_DIFFERENCE = 1e-4
RIVALS, OURS = ("keras", "keras_tuned"), ("single", "mirrored", "horovod")
PARTS = ("step", "input", "compute", "all_reduce", "rest")


class Ours:
    """Our training on `engine`, with the steps of `trainer launch`."""

    def __init__(self, dataset_dir: pathlib.Path, topology: Topology, engine: Engine) -> None:
        config = make_config()
        self._plan: Plan = make_plan(config, parse_path(str(dataset_dir)), topology, [])
        self._engine, self._config = engine, config
        self._state = make_state(self._plan, config, engine, None)
        self._stream = make_training_stream(self._plan, config, topology, open_caches(self._plan, config))
        memory = MemoryPolicy(num_parts=1, max_parts=1)
        step = StagedStep(self._plan, engine, self._state, config)
        self._steps = make_steps(self._plan, engine, self._stream, step, state=self._state, memory=memory)

    def losses(self, num_steps: int) -> list[float]:
        losses: list[float] = []
        while len(losses) < num_steps:
            # As many in a call as `trainer launch` makes, about a second's worth.
            self._steps.make(min(2, num_steps - len(losses)))
            losses += [loss for metrics in self._steps.settle() for loss in np.atleast_1d(metrics.loss).tolist()]
        return losses

    def secs_per_step(self, num_steps: int) -> float:
        started = time.perf_counter()
        self.losses(num_steps)
        return (time.perf_counter() - started) / num_steps

    def parts(self, num_steps: int) -> dict[str, float]:
        plan = self._plan
        step = TrainStep(
            self._engine,
            self._state,
            self._config,
            num_train_steps=plan.schedule.num_train_steps,
            jit_compile=plan.replicas.jit_compile,
        )
        batches = staged_batches(plan.schedule.stages, self._engine, self._stream, 0)
        times = time_steps(self._engine, step, batches, num_steps=num_steps)
        return {name: getattr(times, f"{name}_secs") for name in PARTS}


class Keras:
    """Keras's model.fit under MirroredStrategy, from images in memory in the order of our first steps."""

    def __init__(self, dataset_dir: pathlib.Path, strategy: Any) -> None:
        plan, images, labels = read_images(dataset_dir, 1024)
        keras.utils.set_random_seed(SEED)
        with strategy.scope():
            self._model = build_classifier(
                backbone=plan.model.backbone,
                num_classes=len(plan.data.class_names),
                image_size_px=plan.model.image_size_px,
                batch_norm="frozen",
            )
            load_pretrained(self._model, plan.model.backbone, plan.model.weights)
            self._model.compile(
                keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                jit_compile=False,
            )
        self._data = tf.data.Dataset.from_tensor_slices((images, labels))
        self._repeated = self._data.repeat().shuffle(len(images)).batch(GLOBAL_BATCH_SIZE).prefetch(tf.data.AUTOTUNE)

    def losses(self, num_steps: int) -> list[float]:
        """Return the mean loss over the first steps, repeated for each step."""
        first = self._data.take(num_steps * GLOBAL_BATCH_SIZE).batch(GLOBAL_BATCH_SIZE)
        return [float(self._model.fit(first, epochs=1, verbose=0).history["loss"][0])] * num_steps

    def secs_per_step(self, num_steps: int) -> float:
        timer = _FirstToLastStep()
        self._model.fit(self._repeated, epochs=1, steps_per_epoch=num_steps + 1, verbose=0, callbacks=[timer])
        return timer.secs / num_steps


class _FirstToLastStep(keras.callbacks.Callback):  # type: ignore[misc]
    """Times fit without its start: a new iterator and filling the shuffle buffer."""

    secs = 0.0

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        now = time.perf_counter()
        if batch == 0:
            self._started = now
        self.secs = now - self._started


class Contestant:
    """A job that waits for a file naming a turn, and answers in another file."""

    def __init__(self, name: str, dataset_dir: pathlib.Path, turns_dir: pathlib.Path) -> None:
        self._turns_dir, self._num_turns = turns_dir, 0
        turns_dir.mkdir()
        worker = [sys.executable, __file__, "--worker", name, str(dataset_dir), str(turns_dir)]
        horovodrun = [str(pathlib.Path(sys.executable).with_name("horovodrun")), "--gloo", "-np", "2"]
        self._process = subprocess.Popen([*horovodrun, *worker] if name == "horovod" else worker, stdout=sys.stderr)

    def ask(self, what: str, num_steps: int) -> Any:
        turn = self._turns_dir / f"{self._num_turns:04}"
        self._num_turns += 1
        write_json(turn.with_suffix(".ask"), [what, num_steps])
        while not turn.with_suffix(".answer").exists():
            if self._process.poll() is not None:
                raise RuntimeError(f"{self._turns_dir.name} ended with {self._process.returncode}")
            time.sleep(0.02)
        return json.loads(turn.with_suffix(".answer").read_text(encoding="utf-8"))

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.ask("end", 0)
        self._process.wait(timeout=60)


def serve_turns(name: str, dataset_dir: pathlib.Path, turns_dir: pathlib.Path) -> None:
    """Run a contestant's turns in its process."""
    contestant, is_chief = make_contestant(name, dataset_dir)
    for turn in range(10_000):
        ask = turns_dir / f"{turn:04}.ask"
        while not ask.exists():
            time.sleep(0.02)
        what, num_steps = json.loads(ask.read_text(encoding="utf-8"))
        answer = None if what == "end" else getattr(contestant, what)(num_steps)
        if is_chief:
            write_json(ask.with_suffix(".answer"), answer)
        if what == "end":
            return


def make_contestant(name: str, dataset_dir: pathlib.Path) -> tuple[Ours | Keras, bool]:
    """Return the contestant, and whether this process answers for it."""
    if name == "keras":
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        return Keras(dataset_dir, tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])), True
    if name == "keras_tuned":
        return Keras(dataset_dir, tf.distribute.MirroredStrategy(tf_runtime.split_cpu(2))), True
    if name == "horovod":
        topology = horovod.start("cpu")
        return Ours(dataset_dir, topology, horovod.HorovodEngine(topology)), topology.is_chief
    is_mirrored = name == "mirrored"
    topology = Topology(
        strategy="mirrored" if is_mirrored else "single", device="cpu", num_local_replicas=2 if is_mirrored else 1
    )
    return Ours(dataset_dir, topology, mirrored.make_engine(topology)), True


def make_config() -> Config:
    return load_config(
        overrides=[
            "distribute.device=cpu",
            "model.backbone=efficientnet_lite0",
            "model.batch_norm=frozen",
            f"model.image_size_px={SIZE_PX}",
            "optimizer.name=sgd",
            "optimizer.schedule=constant",
            f"optimizer.learning_rate={LEARNING_RATE}",
            f"optimizer.momentum={MOMENTUM}",
            f"train.global_batch_size={GLOBAL_BATCH_SIZE}",
            f"train.seed={SEED}",
            "train.epochs=1000",
            "data.cache=memory",
        ]
    )


def read_images(dataset_dir: pathlib.Path, num_examples: int) -> tuple[Plan, np.ndarray, np.ndarray]:
    """Return the plan, and images and labels of the first steps in our order."""
    config = make_config()
    topology = Topology(strategy="single", device="cpu", num_local_replicas=1)
    plan = make_plan(config, parse_path(str(dataset_dir)), topology, [])
    stream = make_training_stream(plan, config, topology, open_caches(plan, config))
    batches = list(stream.dataset(0, num_examples // GLOBAL_BATCH_SIZE))
    images, labels = (np.concatenate([getattr(b, name).numpy() for b in batches]) for name in ("images", "labels"))
    return plan, images, labels


def write_json(path: pathlib.Path, content: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.rename(path)


def compare_losses(losses: dict[str, list[float]]) -> bool:
    means = {name: statistics.fmean(values) for name, values in losses.items()}
    print(f"mean loss of the first {NUM_GATE_STEPS} steps: ", end="")
    print(", ".join(f"{name} {mean:.6f}" for name, mean in means.items()), flush=True)
    return all(abs(mean - means["keras"]) <= MAX_LOSS_DIFFERENCE * means["keras"] for mean in means.values())


@contextlib.contextmanager
def open_contestants(directory: pathlib.Path) -> Iterator[dict[str, Contestant]]:
    dataset_dir = directory / "digits"
    prepare_dataset("digits", dataset_dir, options=PrepareOptions())
    with contextlib.ExitStack() as stack:
        contestants = {}
        for name in (*RIVALS, *OURS):
            contestants[name] = Contestant(name, dataset_dir, directory / name)
            stack.callback(contestants[name].close)
        yield contestants


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of one turn")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, dataset_dir, turns_dir = arguments.worker
        serve_turns(name, pathlib.Path(dataset_dir), pathlib.Path(turns_dir))
        return 0
    with tempfile.TemporaryDirectory() as directory, open_contestants(pathlib.Path(directory)) as contestants:
        is_same = compare_losses({name: each.ask("losses", NUM_GATE_STEPS) for name, each in contestants.items()})
        secs: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(arguments.rounds + 1):
            for name, each in contestants.items():
                found = each.ask("secs_per_step", arguments.steps)
                if turn:  # the first round traces and fills buffers
                    secs[name].append(found)
        for name, values in secs.items():
            ratios = ", ".join(
                f"{rival} / it {spread([r / v for r, v in zip(secs[rival], values, strict=True)], '.2f')}"
                for rival in RIVALS
            )
            print(f"{name:<11} {spread([1000 * v for v in values], '.1f')} ms a step   {ratios}")
        for name in OURS:
            times = contestants[name].ask("parts", arguments.steps)
            print(f"{name:<11} " + "   ".join(f"{part} {1000 * value:.1f} ms" for part, value in times.items()))
    return 0 if is_same else 1


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    sys.exit(main())
