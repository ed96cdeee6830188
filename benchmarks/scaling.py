"""Our training step against Keras's fit, and where its time goes: python benchmarks/scaling.py

    single     one replica on the whole machine
    mirrored   MirroredStrategy, two replicas on logical CPU devices
    horovod    two processes over Gloo
    keras      model.fit of the same model, optimizer and batch under MirroredStrategy, two replicas, from images in
               memory, batched, shuffled and prefetched

All fine-tune EfficientNet-Lite0 on scikit-learn's digits at 64 px in global batches of 32: SGD with momentum, batch
statistics frozen, float32, no XLA (which Keras does not have under a strategy). They take turns, so that whatever else
the machine does falls on all of them. Printed: the median time of a step over the turns and its range, and Keras's time
over ours in each round; then the parts of our step. Exit status 1 where the first losses of ours and Keras's differ.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trainer import tf_runtime

tf_runtime.configure(use_gpus=False)

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from trainer.config import Config, load_config  # noqa: E402
from trainer.data.prepare import PrepareOptions, prepare_dataset  # noqa: E402
from trainer.data.storage import parse_path  # noqa: E402
from trainer.distribute import hvd, tf_strategy  # noqa: E402
from trainer.distribute.engine import Engine  # noqa: E402
from trainer.distribute.topology import Topology  # noqa: E402
from trainer.model.classifier import build_classifier  # noqa: E402
from trainer.model.weights import load_pretrained  # noqa: E402
from trainer.plan import Plan, make_plan  # noqa: E402
from trainer.step_times import StepTimes, time_steps  # noqa: E402
from trainer.steps import TrainStep  # noqa: E402
from trainer.streams import make_training_stream, open_caches  # noqa: E402
from trainer.train import make_state, staged_batches  # noqa: E402

GLOBAL_BATCH_SIZE, SIZE_PX, LEARNING_RATE, MOMENTUM, SEED = 32, 64, 0.01, 0.9, 0
NUM_GATE_STEPS = 3
MAX_LOSS_DIFFERENCE = 1e-4
PARTS = ("step", "input", "compute", "all_reduce", "rest")


class Ours:
    """Our training on `engine`: a step after another, as `trainer launch` makes them."""

    def __init__(self, dataset_dir: pathlib.Path, topology: Topology, engine: Engine) -> None:
        config = make_config()
        self.plan: Plan = make_plan(config, parse_path(str(dataset_dir)), topology, [])
        self._engine = engine
        state = make_state(self.plan, config, engine, None)
        stream = make_training_stream(self.plan, config, topology, open_caches(self.plan, config))
        self._step = TrainStep(
            engine, state, config, num_train_steps=self.plan.num_train_steps, jit_compile=self.plan.jit_compile
        )
        self._batches = staged_batches(self.plan, engine, stream, 0)

    def losses(self, num_steps: int) -> list[float]:
        return [float(self._step(next(self._batches)).loss) for _ in range(num_steps)]

    def secs_per_step(self, num_steps: int) -> float:
        started = time.perf_counter()
        self.losses(num_steps)
        return (time.perf_counter() - started) / num_steps

    def parts(self, num_steps: int) -> StepTimes:
        return time_steps(self._engine, self._step, self._batches, num_steps=num_steps)


class Keras:
    """model.fit under a MirroredStrategy on the same devices, from images in memory in the order of our first steps."""

    def __init__(self, plan: Plan, strategy: Any, images: np.ndarray, labels: np.ndarray) -> None:
        keras.utils.set_random_seed(SEED)
        with strategy.scope():
            self._model = build_classifier(
                backbone=plan.backbone,
                num_classes=len(plan.class_names),
                image_size_px=plan.image_size_px,
                batch_norm="frozen",
            )
            load_pretrained(self._model, plan.backbone, plan.weights)
            self._model.compile(
                keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                jit_compile=False,
            )
        self._data = tf.data.Dataset.from_tensor_slices((images, labels))
        self._repeated = self._data.repeat().shuffle(len(images)).batch(GLOBAL_BATCH_SIZE).prefetch(tf.data.AUTOTUNE)

    def loss_of_first(self, num_steps: int) -> float:
        """The mean loss over the first steps."""
        first = self._data.take(num_steps * GLOBAL_BATCH_SIZE).batch(GLOBAL_BATCH_SIZE)
        return float(self._model.fit(first, epochs=1, verbose=0).history["loss"][0])

    def secs_per_step(self, num_steps: int) -> float:
        timer = _FirstToLastStep()
        self._model.fit(self._repeated, epochs=1, steps_per_epoch=num_steps + 1, verbose=0, callbacks=[timer])
        return timer.secs / num_steps


class _FirstToLastStep(keras.callbacks.Callback):  # type: ignore[misc]
    """Leaves out what fit does before its first step: a new iterator, a full shuffle buffer."""

    secs = 0.0

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        now = time.perf_counter()
        if batch == 0:
            self._started = now
        self.secs = now - self._started


class Horovod:
    """Ours in two processes; they wait for a file that names a turn, and the first of them answers in another."""

    def __init__(self, dataset_dir: pathlib.Path, turns_dir: pathlib.Path) -> None:
        self._turns_dir, self._num_turns = turns_dir, 0
        worker = [sys.executable, __file__, "--worker", str(dataset_dir), str(turns_dir)]
        self._process = subprocess.Popen(
            [str(pathlib.Path(sys.executable).with_name("horovodrun")), "--gloo", "-np", "2", *worker],
            stdout=sys.stderr,
        )

    def ask(self, what: str, num_steps: int) -> Any:
        turn = self._turns_dir / f"{self._num_turns:04}"
        self._num_turns += 1
        write_json(turn.with_suffix(".ask"), [what, num_steps])
        while not turn.with_suffix(".answer").exists():
            if self._process.poll() is not None:
                raise RuntimeError(f"horovodrun ended with {self._process.returncode}")
            time.sleep(0.05)
        return json.loads(turn.with_suffix(".answer").read_text())

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.ask("end", 0)
        self._process.wait(timeout=60)


def serve_turns(dataset_dir: pathlib.Path, turns_dir: pathlib.Path) -> None:
    """What each of the two processes does."""
    topology = hvd.start("cpu")
    ours = Ours(dataset_dir, topology, hvd.make_engine(topology))
    for turn in range(10_000):
        ask = turns_dir / f"{turn:04}.ask"
        while not ask.exists():
            time.sleep(0.05)
        what, num_steps = json.loads(ask.read_text())
        answer: Any = None
        if what == "losses":
            answer = ours.losses(num_steps)
        elif what == "secs":
            answer = ours.secs_per_step(num_steps)
        elif what == "parts":
            answer = describe_parts(ours.parts(num_steps))
        if topology.is_chief:
            write_json(ask.with_suffix(".answer"), answer)
        if what == "end":
            return


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


def read_images(dataset_dir: pathlib.Path, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of the first steps, in our order."""
    config = make_config()
    topology = Topology(strategy="single", device="cpu", num_local_replicas=1)
    plan = make_plan(config, parse_path(str(dataset_dir)), topology, [])
    stream = make_training_stream(plan, config, topology, open_caches(plan, config))
    batches = list(stream.dataset(0, num_examples // GLOBAL_BATCH_SIZE))
    images, labels = (np.concatenate([getattr(b, name).numpy() for b in batches]) for name in ("images", "labels"))
    return images, labels


def describe_parts(times: StepTimes) -> dict[str, float]:
    return {name: getattr(times, f"{name}_secs") for name in PARTS}


def write_json(path: pathlib.Path, content: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.rename(path)


def compare_losses(losses: dict[str, list[float]], of_keras: float) -> bool:
    means = {name: statistics.fmean(values) for name, values in losses.items()}
    print(f"mean loss of the first {NUM_GATE_STEPS} steps: keras {of_keras:.6f}", end="")
    print("".join(f", {name} {mean:.6f}" for name, mean in means.items()), flush=True)
    return all(abs(mean - of_keras) <= MAX_LOSS_DIFFERENCE * of_keras for mean in means.values())


@contextlib.contextmanager
def open_contestants(directory: pathlib.Path) -> Iterator[tuple[Mapping[str, Ours], Keras, Horovod]]:
    # The devices of a process are settled by its first operation.
    devices = tf_runtime.split_cpu(2)
    dataset_dir, turns_dir = directory / "digits", directory / "turns"
    turns_dir.mkdir()
    prepare_dataset("digits", dataset_dir, options=PrepareOptions())
    horovod = Horovod(dataset_dir, turns_dir)
    try:
        ours: dict[str, Ours] = {}
        for topology in (
            Topology(strategy="single", device="cpu", num_local_replicas=1),
            Topology(strategy="mirrored", device="cpu", num_local_replicas=2),
        ):
            ours[topology.strategy] = Ours(dataset_dir, topology, tf_strategy.make_engine(topology))
        images, labels = read_images(dataset_dir, 1024)
        yield ours, Keras(ours["single"].plan, tf.distribute.MirroredStrategy(devices), images, labels), horovod
    finally:
        horovod.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of one turn")
    parser.add_argument("--worker", nargs=2, type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve_turns(*arguments.worker)
        return 0
    with tempfile.TemporaryDirectory() as directory, open_contestants(pathlib.Path(directory)) as contestants:
        ours, keras_fit, horovod = contestants
        losses = {name: training.losses(NUM_GATE_STEPS) for name, training in ours.items()}
        losses["horovod"] = horovod.ask("losses", NUM_GATE_STEPS)
        is_same = compare_losses(losses, keras_fit.loss_of_first(NUM_GATE_STEPS))
        contest: dict[str, Callable[[int], float]] = {
            "keras": keras_fit.secs_per_step,
            **{name: training.secs_per_step for name, training in ours.items()},
            "horovod": lambda num_steps: horovod.ask("secs", num_steps),
        }
        secs: dict[str, list[float]] = {name: [] for name in contest}
        for turn in range(arguments.rounds + 1):
            for name, run in contest.items():
                found = run(arguments.steps)
                if turn:  # the first round traces and fills buffers
                    secs[name].append(found)
        for name, values in secs.items():
            ratios = [k / o for k, o in zip(secs["keras"], values, strict=True)]
            print(
                f"{name:<9} {spread([1000 * v for v in values], '.1f')} ms a step   keras / it {spread(ratios, '.2f')}"
            )
        parts = {name: describe_parts(training.parts(arguments.steps)) for name, training in ours.items()}
        parts["horovod"] = horovod.ask("parts", arguments.steps)
        for name, times in parts.items():
            print(f"{name:<9} " + "   ".join(f"{part} {1000 * value:.1f} ms" for part, value in times.items()))
    return 0 if is_same else 1


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    sys.exit(main())
