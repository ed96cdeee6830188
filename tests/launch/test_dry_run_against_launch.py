"""What `--dry-run` prints is what then happens: the same arguments without it, compared with processes, files and reads
that were recorded while the job ran.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import subprocess
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from launching import QUICK, command, metrics

from trainer.config.config import load_config
from trainer.distribute.topology import Topology
from trainer.launch.job import worker_command
from trainer.launch.plan_run import plan_run
from trainer.training.input import TrainInputs, make_training_stream

pytestmark = pytest.mark.slow

WORKER = worker_command([])
RECORDED_START = pathlib.Path(__file__).parent / "recorded_start"
# What changes the arithmetic is on.
SETTINGS = (
    "train.epochs=1",
    "train.global_batch_size=128",
    "optimizer.scaling=linear",
    "optimizer.warmup_epochs=0.25",
    "distribute.compression=float16",
    "data.cache=off",
    "log.every_steps=1",
)
FAKE_SSH = """#!/bin/sh
printf '%s\\n' "$0" "$@" > "$RECORDS/ssh-$$"
for last in "$@"; do :; done
exec sh -c "$last"
"""


@dataclasses.dataclass
class Launched:
    """A dry run's document, and what the launch with the same arguments left behind."""

    document: dict[str, Any]
    run_dir: pathlib.Path
    records: pathlib.Path

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in self.records.glob("start-*.json")]

    def worker_records(self) -> list[dict[str, Any]]:
        """The record of each worker's start, in the order of the workers."""
        if len(self.document["workers"]["starts"]) == 1:
            return [start for start in self.starts if start["command"][-1:] == [self.own_last_argument]]
        workers = [start for start in self.starts if start["command"][: len(WORKER)] == WORKER]
        return sorted(workers, key=lambda start: worker_index(start["environment"]))

    @property
    def own_last_argument(self) -> str:
        return str(self.document["workers"]["starts"][0]["command"][-1])

    def reads(self, pid: int) -> list[list[int]]:
        """The training examples of each read of a process."""
        lines = (self.records / f"reads-{pid}.jsonl").read_text().splitlines()
        return [examples for split, examples in map(json.loads, lines) if split == "train"]


def worker_index(environment: dict[str, str]) -> int:
    if "HOROVOD_RANK" in environment:
        return int(environment["HOROVOD_RANK"])
    if "TF_CONFIG" in environment:
        return int(json.loads(environment["TF_CONFIG"])["task"]["index"])
    # An elastic worker is told its rank later.
    return int(environment["TRAINER_LOCAL_INDEX"])


def run(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        command("launch", *arguments), env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def launch_both_ways(digits: pathlib.Path, folder: pathlib.Path, *arguments: str) -> Launched:
    programs, records, run_dir = folder / "bin", folder / "records", folder / "run"
    programs.mkdir()
    records.mkdir()
    (programs / "ssh").write_text(FAKE_SSH)
    (programs / "ssh").chmod(0o755)
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    settings = [f"--set={setting}" for setting in SETTINGS]
    arguments = (f"--data={digits}", f"--run-dir={run_dir}", *QUICK, *settings, *arguments)
    document = json.loads(run({"PATH": path}, "--dry-run", "--json", *arguments))
    assert not run_dir.exists(), "a dry run starts nothing"
    run({"PATH": path, "PYTHONPATH": str(RECORDED_START), "RECORDS": str(records)}, *arguments)
    return Launched(document, run_dir, records)


def assert_matches(printed: str, real: str) -> None:
    """Equal, but for what stands in angle brackets."""
    parts = re.split(r"<[a-z][^<>]*>", printed)
    assert re.fullmatch(r"[^<>]+?".join(map(re.escape, parts)), real), (printed, real)


def check_plan(launched: Launched) -> None:
    plan = json.loads((launched.run_dir / "plan.json").read_text())
    assert {name: launched.document[name] for name in plan} == plan
    assert launched.document["run_dir"] == str(launched.run_dir)
    assert launched.document["first_step"] == 0


def check_processes(launched: Launched) -> None:
    printed, real = launched.document["workers"]["starts"], launched.worker_records()
    assert len(real) == len(printed)
    by_pid = {start["pid"]: start for start in launched.starts}
    for start, record in zip(printed, real, strict=True):
        assert record["command"] == start["command"]
        if start["guard"] is None:
            continue
        guard = by_pid[record["parent"]]
        expected = {**guard["handed_on"], **start["environment"]}
        assert record["environment"].keys() == expected.keys()
        for name, value in expected.items():
            assert_matches(value, record["environment"][name])
        if start["guard"][0] != "ssh":
            assert guard["command"] == start["guard"]


def check_ssh(launched: Launched) -> None:
    asked = sorted(path.read_text().splitlines()[1:] for path in launched.records.glob("ssh-*"))
    printed = sorted(start["guard"] for start in launched.document["workers"]["starts"] if start["guard"][0] == "ssh")
    assert asked == [arguments[1:] for arguments in printed]
    assert len(asked) == 2


def check_examples(launched: Launched, digits: pathlib.Path) -> None:
    """The printed digests are those of the stream of each worker, and the worker read just what its stream says."""
    document = launched.document
    overrides = [*(option.removeprefix("--set=") for option in QUICK if option.startswith("--set=")), *SETTINGS]
    config = load_config(overrides=[*overrides, f"data.path={digits}", "distribute.device=cpu"])
    plan = plan_run(config, run_dir=launched.run_dir.with_name("other"), resume=True, note=lambda _: None).plan
    replicas = plan.replicas.model_copy(update={name: document[name] for name in ("num_replicas", "num_workers")})
    plan = plan.model_copy(update={"replicas": replicas})
    num_local = document["topology"]["num_local_replicas"]
    seen: collections.Counter[int] = collections.Counter()
    for worker, record in enumerate(launched.worker_records()):
        topology = Topology(
            strategy=document["strategy"],
            device="cpu",
            num_local_replicas=num_local,
            num_workers=plan.replicas.num_workers,
            worker_index=worker,
        )
        stream = make_training_stream(plan, config, topology, TrainInputs())
        draws = [stream.draw(tf.constant(k, tf.int64)) for k in range(plan.schedule.num_train_steps * num_local)]
        reads = launched.reads(record["pid"])
        assert sorted(reads) == sorted(draw.examples.numpy().tolist() for draw in draws)
        for local, replica in enumerate(topology.local_replicas):
            real = [draw.examples.numpy()[draw.weights.numpy() > 0] for draw in draws[local::num_local]]
            printed = document["examples"]["replicas"][replica]
            assert printed["worker"] == worker
            assert printed["next_examples"] == real[0][:8].tolist()
            assert printed["digest"] == hashlib.sha256(np.concatenate(real).astype("<i8").tobytes()).hexdigest()
            assert printed["num_examples"] == sum(map(len, real))
            seen.update(np.concatenate(real).tolist())
    assert seen == dict.fromkeys(range(document["num_train_examples"]), 1)
    assert document["examples"]["is_each_once"] is True


def check_numbers(launched: Launched) -> None:
    rates = {line["step"] - 1: line["learning_rate"] for line in metrics(launched.run_dir) if "learning_rate" in line}
    printed = {at["step"]: at["learning_rate"] for at in launched.document["learning_rate"]["at"]}
    assert len(printed) >= 5
    assert {step: rates[step] for step in printed} == pytest.approx(printed, rel=1e-6)
    assert max(rates) + 1 == launched.document["batches"]["num_train_steps"]
    (checkpoint,) = sorted((launched.run_dir / "checkpoints").glob("step-*"))[-1:]
    model = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    footprint = launched.document["footprint"]
    assert sum(array.size for array in model.values()) == footprint["parameters"]["num_parameters"]
    slots = safetensors.numpy.load_file(checkpoint / "optimizer.safetensors")
    num_slots_bytes = sum(array.nbytes for name, array in slots.items())
    assert num_slots_bytes == footprint["memory"]["optimizer_slots_bytes"]


STRATEGIES = [
    pytest.param(["--strategy=mirrored", "--replicas=2"], id="mirrored"),
    pytest.param(["--strategy=multiworker", "--replicas=2"], id="multiworker"),
    pytest.param(
        ["--strategy=horovod", "--hosts=a.invalid:1,b.invalid:1"], marks=pytest.mark.horovod, id="horovod over ssh"
    ),
]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_launch_does_what_its_dry_run_has_printed(
    strategy: list[str], digits: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    launched = launch_both_ways(digits, tmp_path, *strategy)
    check_plan(launched)
    check_processes(launched)
    check_examples(launched, digits)
    check_numbers(launched)
    if "--strategy=horovod" in strategy:
        check_ssh(launched)
