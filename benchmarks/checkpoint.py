"""Measure what saving costs: the time of the training, and its peak memory.

    python benchmarks/checkpoint.py --pairs 5
    python benchmarks/checkpoint.py --backbone resnet50 --turn-secs 6 --turns 3

    off        training without a save
    ours       one save at the start of a turn: the state is copied, and written beside the training
    blocking   one save at the start of a turn, as a plain training loop does it: Keras's model.save_weights, and the
               slots of the optimizer in an .npz file, not flushed, and training waits for both

The three take short turns in one process, so that other load on the machine affects all; several turns of each make
one of the pairs. A turn is a fixed number of steps that take about `--turn-secs` without a save, and it ends when
everything is written. What a save adds to a turn it adds to any time: its share is that over `--every-secs`. The same
is told of the processor's time, all threads together, which other load changes less.

Memory is measured in a process of its own for each, since freed memory stays with a process: the highest resident
memory (VmHWM) of turns with a save, less that of turns without one before them, over the bytes of the saved state
(weights, slots and averages). `--pairs 0` measures memory alone. Exit status 1 if ours takes
over 1% of the time or over 2 times the bytes of the state.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from trainer.system import tf_runtime

if __name__ == "__main__":
    tf_runtime.configure(use_gpus=False)

import numpy as np

from trainer.config.config import load_config
from trainer.data.dataset.storage import parse_path
from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset
from trainer.distribute import mirrored
from trainer.distribute.topology import Topology
from trainer.plan.plan import make_plan
from trainer.run.checkpoint_saver import CheckpointSaver
from trainer.run.checkpoint_store import CheckpointStore
from trainer.run.run_dir import RunDir
from trainer.training.batches import make_steps
from trainer.training.context import RunContext
from trainer.training.input import make_training_stream, open_caches
from trainer.training.make_state import make_state
from trainer.training.memory import MemoryPolicy
from trainer.training.saved_state import save_checkpoint
from trainer.training.staged_step import StagedStep

CONTENDERS = ("off", "ours", "blocking")
MAX_TIME_SHARE, MAX_MEMORY_RATIO = 0.01, 2.0
NUM_MEMORY_SAVES, STEPS_AFTER_A_SAVE = 3, 6


class Training:
    """A training as `trainer launch` does it, in turns of steps with a save at the start of each."""

    def __init__(self, dataset_dir: pathlib.Path, run_dir: pathlib.Path, backbone: str) -> None:
        config = load_config(
            overrides=[
                "distribute.device=cpu",
                f"model.backbone={backbone}",
                "model.weights=none",
                "model.image_size_px=64",
                "train.global_batch_size=32",
                "train.ema_decay=0.999",
                "train.epochs=1000",
                "data.cache=memory",
            ]
        )
        topology = Topology(strategy="single", device="cpu", num_local_replicas=1)
        plan = make_plan(config, parse_path(str(dataset_dir)), topology, [])
        engine = mirrored.make_engine(topology)
        run = RunDir(run_dir)
        run.create(config, plan.run_info(config, "run"))
        self._files = run_dir / "blocking"
        self._files.mkdir()
        saver = CheckpointSaver(CheckpointStore.of_run(run, config.checkpoint), print)
        state = make_state(plan, config, engine, None)
        self._context = RunContext(plan=plan, config=config, run=run, engine=engine, state=state, saver=saver)
        stream = make_training_stream(plan, config, topology, open_caches(plan, config))
        memory = MemoryPolicy(num_parts=1, max_parts=1)
        step = StagedStep(plan, engine, state, config)
        self._steps = make_steps(plan, engine, stream, step, state=state, memory=memory)

    def make_steps(self, num_steps: int) -> None:
        """Make steps, about a second's worth in a call, as `trainer launch` does."""
        while num_steps > 0:
            num_steps -= self._steps.make(min(2, num_steps))
            self._steps.settle()

    def take_turn(self, contender: str, num_steps: int) -> float:
        """Save, make steps, and return the seconds until all is written."""
        saver = self._context.saver
        assert saver is not None
        started = time.perf_counter()
        if contender == "ours":
            save_checkpoint(self._context, self._context.step)
        elif contender == "blocking":
            self._save_and_wait()
        self.make_steps(num_steps)
        saver.wait()
        return time.perf_counter() - started

    def _save_and_wait(self) -> None:
        state = self._context.state
        state.model.save_weights(self._files / "model.weights.h5")
        slots = {f"{i}.{j}": slot.numpy() for i, slots in enumerate(state.slots) for j, slot in enumerate(slots)}
        np.savez(self._files / "optimizer.npz", **slots)

    def num_state_bytes(self) -> int:
        """Return the bytes of one of our checkpoints."""
        save_checkpoint(self._context, self._context.step, is_last=True)
        newest: pathlib.Path = max(self._context.run.checkpoints_dir.glob("step-*"))
        return sum(file.stat().st_size for file in newest.iterdir())


@dataclasses.dataclass(frozen=True)
class Memory:
    """The bytes that saving adds to the peak, and those of the saved state."""

    added_bytes: int
    state_bytes: int


def measure_memory(training: Training, contender: str) -> Memory:
    """Measure turns without a save and then turns with one; the size of the state is measured after them."""

    def find_peak(contender: str) -> int:
        pathlib.Path("/proc/self/clear_refs").write_text("5", "utf-8")  # starts VmHWM anew
        for _ in range(NUM_MEMORY_SAVES):
            training.take_turn(contender, STEPS_AFTER_A_SAVE)
        lines = pathlib.Path("/proc/self/status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

    find_peak("off")  # to what it keeps
    without = find_peak("off")
    return Memory(find_peak(contender) - without, training.num_state_bytes())


def measure_memory_apart(dataset_dir: pathlib.Path, contender: str, backbone: str) -> Memory:
    command = [sys.executable, __file__, "--memory", contender, str(dataset_dir), "--backbone", backbone]
    ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if ended.returncode:
        raise SystemExit(f"measuring the memory of {contender} failed:\n{ended.stdout}{ended.stderr}")
    return Memory(**json.loads(ended.stdout.splitlines()[-1]))


@dataclasses.dataclass
class Shares:
    """The share of a training's time, and of its processor time, that saving takes; a value for each pair."""

    time: list[float] = dataclasses.field(default_factory=list)
    processor: list[float] = dataclasses.field(default_factory=list)


def measure_time(training: Training, options: argparse.Namespace) -> dict[str, Shares]:
    training.make_steps(4)
    num_steps = max(2, round(options.turn_secs / (training.take_turn("off", 8) / 8)))
    for contender in CONTENDERS[1:]:
        training.take_turn(contender, 4)  # opens files and libraries for the first time
    shares = {name: Shares() for name in CONTENDERS[1:]}
    print(f"{options.turns} turns of {num_steps} steps each; seconds, and of the processor, {', '.join(CONTENDERS)}:")
    for _ in range(options.pairs):
        secs, processor_secs = dict.fromkeys(CONTENDERS, 0.0), dict.fromkeys(CONTENDERS, 0.0)
        for turn in range(options.turns):
            # Another one begins each time.
            for contender in CONTENDERS[turn % 3 :] + CONTENDERS[: turn % 3]:
                before = time.process_time()
                secs[contender] += training.take_turn(contender, num_steps)
                processor_secs[contender] += time.process_time() - before
        print(*(f"{by[name]:7.2f}" for by in (secs, processor_secs) for name in CONTENDERS), flush=True)
        for name, values in shares.items():
            values.time.append((secs[name] - secs["off"]) / options.turns / options.every_secs)
            # In `every_secs`, training without a save uses so much of the processor.
            used_secs = processor_secs["off"] / secs["off"] * options.every_secs
            values.processor.append((processor_secs[name] - processor_secs["off"]) / options.turns / used_secs)
    return shares


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--every-secs", type=float, default=30.0, help="between two saves")
    parser.add_argument("--turn-secs", type=float, default=1.5, help="of training in a turn")
    parser.add_argument("--turns", type=int, default=6, help="of each in a pair")
    parser.add_argument("--memory", nargs=2, metavar=("CONTENDER", "DATASET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = pathlib.Path(folder)
        if options.memory:
            contender, dataset_dir = options.memory
            training = Training(pathlib.Path(dataset_dir), directory / "run", options.backbone)
            print(json.dumps(dataclasses.asdict(measure_memory(training, contender))))
            return 0
        dataset_dir = directory / "digits"
        prepare_dataset("digits", dataset_dir, options=PrepareOptions())
        shares: dict[str, Shares] = {}
        if options.pairs:
            shares = measure_time(Training(dataset_dir, directory / "run", options.backbone), options)
        memory = {name: measure_memory_apart(dataset_dir, name, options.backbone) for name in CONTENDERS[1:]}
    state_mib = memory["ours"].state_bytes / 2**20
    print(f"{options.backbone}, {state_mib:.0f} MiB of state, one save in {options.every_secs:g} s")
    for name, share in shares.items():
        print(f"{name:<10} time {_spread(share.time)}, processor {_spread(share.processor)} of those without a save")
    ratios = {name: found.added_bytes / found.state_bytes for name, found in memory.items()}
    for name, ratio in ratios.items():
        print(f"{name:<10} adds {ratio:.2f} times the state to the peak memory")
    is_cheap = not shares or statistics.median(shares["ours"].time) <= MAX_TIME_SHARE
    return 0 if is_cheap and ratios["ours"] <= MAX_MEMORY_RATIO else 1


def _spread(shares: list[float]) -> str:
    return f"{1 + statistics.median(shares):.4f} ({1 + min(shares):.4f} to {1 + max(shares):.4f})"


if __name__ == "__main__":
    sys.exit(main())
