"""Measure the time from the command to the first training step, on 1 GB and on 20 GB of data, or on kept features.

    python benchmarks/start_to_first_step.py --pairs 5
    python benchmarks/start_to_first_step.py --kept-features --pairs 5      # a frozen run, repeated
    python benchmarks/start_to_first_step.py --gigabytes 1 --only ours      # where the time of a start goes

    ours      `trainer launch` as it is: sizes and checksums of the indexes at the start, of each record when it is read
    hashing   the same, and the SHA-256 of every shard before the first step, eight at a time, as earlier versions did

EfficientNet-Lite0 at 32 px on one CPU replica, without caches. Every shard is a hard link to the same file of 64 MB, so
that 20 GB need no disk and come from the page cache: the time of hashing is that of the processor alone. Contenders and
sizes take turns, so that other load on the machine affects all. Prints medians of the seconds to each mark, and the
seconds of processor time that the process had used at the first step, which other load hardly changes. Exit status 1 if
our start on the most bytes takes over 1.2 times the processor time of that on the fewest.

With --kept-features, the head alone is trained, two epochs of 1,700 images whose features an earlier run has kept. The
command runs to its end; its overhead is what it takes but for the steps after the first call, which is traced. Exit
status 1 if that is over 6 s.
"""

import argparse
import concurrent.futures
import hashlib
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock
from typing import Any

import numpy as np

SHARD_BYTES, IMAGE_SIDE_PX, MAX_RATIO = 64 * 10**6, 224, 1.2
CONTENDERS = ("ours", "hashing")
KEPT_FEATURES, STEPS, MAX_OVERHEAD_SECS = "kept features", "steps", 6.0
MARKS = ("command", "TensorFlow", "plan", "first step")
PROCESSOR = "processor"


def write_dataset(directory: pathlib.Path, gigabytes: float) -> None:
    """Write a dataset whose shards are links to one file of random PNG images."""
    from PIL import Image

    from trainer.data.dataset.manifest import Manifest, Split, SplitName
    from trainer.data.dataset.records import Example, ShardWriter

    directory.mkdir()
    content = io.BytesIO()
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (IMAGE_SIDE_PX, IMAGE_SIDE_PX, 3), np.uint8)).save(content, "PNG")
    splits: dict[SplitName, Split] = {}
    for split, num_bytes in (("train", gigabytes * 1e9), ("validation", SHARD_BYTES)):
        num_shards = max(1, round(num_bytes / SHARD_BYTES))
        with ShardWriter(directory, f"{split}-first") as writer:
            for i in range(SHARD_BYTES // len(content.getvalue())):
                writer.write(
                    Example(
                        encoded=content.getvalue(),
                        labels=(i % 2,),
                        format="png",
                        filename=f"{i}.png",
                        height=IMAGE_SIDE_PX,
                        width=IMAGE_SIDE_PX,
                    )
                )
        shards = []
        for i in range(num_shards):
            names = {"file_name": f"{split}-{i:05}.tfrecord", "index_file_name": f"{split}-{i:05}.idx"}
            os.link(directory / writer.shard.file_name, directory / names["file_name"])
            os.link(directory / writer.shard.index_file_name, directory / names["index_file_name"])
            shards.append(writer.shard.model_copy(update=names))
        num_examples = num_shards * writer.shard.num_examples
        splits[split] = Split(  # type: ignore[index]
            num_examples=num_examples, class_counts=[(num_examples + 1) // 2, num_examples // 2], shards=shards
        )
    Manifest(name="links", source="links", class_names=["a", "b"], seed=0, splits=splits).save(directory)


def start_once(contender: str, dataset: pathlib.Path, run_dir: pathlib.Path) -> dict[str, float]:
    """Start a training in a new process; return the seconds from its start to each mark, and those of the processor."""
    arguments = ["launch", f"--data={dataset}", f"--run-dir={run_dir}", "--device=cpu", "--set=model.image_size_px=32"]
    if contender == KEPT_FEATURES:
        arguments += ["--set=model.trainable=head", "--set=features.cache=on", "--set=train.epochs=2"]
    else:
        arguments += ["--set=data.cache=off", "--set=features.cache=off", "--set=train.epochs=1"]
    started = time.time()
    ended = subprocess.run(
        [sys.executable, __file__, "--child", contender, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    if ended.returncode or not lines:
        raise SystemExit(f"the launch failed:\n{ended.stdout}{ended.stderr}")
    ended_at, found = time.time(), json.loads(lines[-1])
    secs = {name: found.pop(name) for name in (PROCESSOR, STEPS) if name in found}
    return secs | {mark: at - started for mark, at in {**found, "end": ended_at}.items()}


def run_child(contender: str, arguments: list[str]) -> None:
    """Run the command line, note when it passes each mark, and end this process after the first step."""
    from trainer.cli import app, launch
    from trainer.system import tf_runtime

    marks = {MARKS[0]: time.time()}
    configure, describe = tf_runtime.configure, launch._describe_in_a_line

    def configure_and_mark(**options: Any) -> None:
        configure(**options)
        marks[MARKS[1]] = time.time()

    def describe_and_mark(summary: dict[str, Any]) -> str:
        # TensorFlow is imported by now, so that the modules to patch cost nothing that the command does not.
        _patch_training(contender, marks)
        marks[MARKS[2]] = time.time()
        return describe(summary)

    unittest.mock.patch.object(tf_runtime, "configure", configure_and_mark).start()
    unittest.mock.patch.object(launch, "_describe_in_a_line", describe_and_mark).start()
    sys.argv = ["trainer", *arguments]
    app.main()


def _patch_training(contender: str, marks: dict[str, float]) -> None:
    from trainer.launch import run_session
    from trainer.training import loop, train

    def run_one_step(*, steps: Any, **_: Any) -> int:
        steps.make(1)
        steps.settle()
        marks[MARKS[3]] = time.time()
        print(json.dumps({**marks, PROCESSOR: time.process_time()}), flush=True)
        os._exit(0)

    def run_and_time(*, steps: Any, **others: Any) -> int:
        secs: list[float] = []
        make = steps.make

        def make_and_time(num_steps: int) -> int:
            started = time.time()
            num_made: int = make(num_steps)
            marks.setdefault(MARKS[3], time.time())
            secs.append(time.time() - started)
            return num_made

        steps.make = make_and_time
        step = run_loop(steps=steps, **others)
        print(json.dumps({**marks, PROCESSOR: time.process_time(), STEPS: sum(secs[1:])}), flush=True)
        return step

    run_loop = loop.run_loop
    replaced = run_and_time if contender == KEPT_FEATURES else run_one_step
    unittest.mock.patch.object(train, "run_loop", replaced).start()
    if contender == "hashing":
        check = run_session.RunSession.check_dataset

        def hash_too(session: run_session.RunSession) -> None:
            check(session)
            _hash_shards(pathlib.Path(session.planned.plan.data.dataset_dir))

        unittest.mock.patch.object(run_session.RunSession, "check_dataset", hash_too).start()


def _hash_shards(directory: pathlib.Path) -> None:
    from trainer.data.dataset.manifest import Manifest

    def digest_of(path: pathlib.Path) -> str:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()

    shards = [shard for split in Manifest.load(directory).splits.values() for shard in split.shards]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        digests = pool.map(lambda shard: digest_of(directory / shard.file_name), shards)
        assert list(digests) == [shard.sha256 for shard in shards]


def repeat_on_kept_features(num_repetitions: int) -> int:
    """Print the seconds of a run on kept features to each mark, and its overhead; return the exit status."""
    names = (*MARKS, "end", STEPS, PROCESSOR)
    turns = []
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_dataset(root / "data", 4 * SHARD_BYTES / 1e9)
        for turn in range(1 + num_repetitions):
            secs = start_once(KEPT_FEATURES, root / "data", root / f"run-{turn}")
            if turn:  # the first computes the features
                turns.append(secs)
    print("".join(f"{name:>12s}" for name in names) + "    overhead")
    overheads = [secs["end"] - secs[STEPS] for secs in turns]
    for secs, overhead in zip(turns, overheads, strict=True):
        print("".join(f"{secs[name]:10.2f} s" for name in names) + f"{overhead:10.2f} s")
    median = statistics.median(overheads)
    print(f"overhead {median:.1f} s ({min(overheads):.1f} to {max(overheads):.1f}), at most {MAX_OVERHEAD_SECS:g}")
    return 0 if median <= MAX_OVERHEAD_SECS else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 20])
    parser.add_argument("--only", choices=CONTENDERS)
    parser.add_argument("--kept-features", action="store_true", help="repeat a frozen run instead")
    options = parser.parse_args()
    if options.kept_features:
        return repeat_on_kept_features(options.pairs)
    contenders = [options.only] if options.only else list(CONTENDERS)
    found: dict[tuple[str, float], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for gigabytes in options.gigabytes:
            write_dataset(root / f"{gigabytes:g}", gigabytes)
        for turn in range(1 + options.pairs):
            for gigabytes in options.gigabytes:
                for contender in contenders:
                    run_dir = root / f"run-{turn}-{gigabytes:g}-{contender}"
                    secs = start_once(contender, root / f"{gigabytes:g}", run_dir)
                    if turn:  # the first warms the caches of files
                        found.setdefault((contender, gigabytes), []).append(secs)
    print(" " * 24 + "".join(f"{mark:>12s}" for mark in (*MARKS, PROCESSOR)) + "   range to the first step")
    medians: dict[tuple[str, float], dict[str, float]] = {}
    for key, turns in found.items():
        medians[key] = {mark: statistics.median(turn[mark] for turn in turns) for mark in (*MARKS, PROCESSOR)}
        last = [turn[MARKS[-1]] for turn in turns]
        row = "".join(f"{value:10.2f} s" for value in medians[key].values())
        print(f"{key[0]:10s}{key[1]:8g} GB   {row}   {min(last):.1f} to {max(last):.1f}")
    if len(options.gigabytes) == 1 or "ours" not in contenders:
        return 0
    ratio = medians["ours", max(options.gigabytes)][PROCESSOR] / medians["ours", min(options.gigabytes)][PROCESSOR]
    print(f"ours on the most bytes over ours on the fewest: {ratio:.2f} (at most {MAX_RATIO})")
    return 0 if ratio <= MAX_RATIO else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
