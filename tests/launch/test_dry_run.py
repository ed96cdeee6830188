"""The parts of a dry run, each against the code that will do what it says."""

import collections
import hashlib
import json
import math
import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from launching import QUICK, command

from trainer.config.config import Config, load_config
from trainer.data.input.batch import Batch
from trainer.data.sampling.order import Draws, ExampleOrder
from trainer.distribute.launchers.environments import forwarded_variables
from trainer.distribute.mirrored import make_engine
from trainer.distribute.topology import Topology
from trainer.dry_run.arithmetic import count_batches, find_learning_rates
from trainer.dry_run.examples import Examples, find_examples
from trainer.dry_run.footprint import measure_footprint
from trainer.launch.plan_run import PlannedRun, plan_run
from trainer.model.backbones import registry
from trainer.model.backbones.registry import Backbone, PixelScaling
from trainer.plan.plan import Plan
from trainer.step.forward_backward import split_batch
from trainer.step.train_step import TrainStep
from trainer.training.actions import is_saving_due
from trainer.training.input import TrainInputs, make_training_stream
from trainer.training.make_state import make_state

pytestmark = pytest.mark.slow

FLAT_PLAN = pathlib.Path(__file__).parents[1] / "plan/flat_plan.json"
SMALL = ["distribute.device=cpu", "model.image_size_px=32", "train.epochs=1", "data.cache=off"]


def plan_with(dataset: pathlib.Path, tmp_path: pathlib.Path, *overrides: str) -> tuple[Plan, Config, Topology]:
    config = load_config(overrides=[*SMALL, f"data.path={dataset}", *overrides])
    planned: PlannedRun = plan_run(config, run_dir=tmp_path / "run", resume=True, note=lambda _: None)
    return planned.plan, config, planned.topology


def drawn(plan: Plan, config: Config, topology: Topology, replica: int, steps: Sequence[int]) -> list[list[int]]:
    """The real examples of a replica in each of `steps`, from the stream that training reads; one worker."""
    stream = make_training_stream(plan, config, topology, TrainInputs())
    draws = [stream.draw(tf.constant(step * topology.num_local_replicas + replica, tf.int64)) for step in steps]
    return [draw.examples.numpy()[draw.weights.numpy() > 0].tolist() for draw in draws]


def digest_of(examples: list[int]) -> str:
    return hashlib.sha256(np.array(examples, "<i8").tobytes()).hexdigest()


@pytest.mark.parametrize(
    "overrides",
    [
        ["distribute.replicas=3", "train.global_batch_size=50"],
        ["distribute.replicas=2", "data.run_length=8", "train.seed=7"],
        ["distribute.replicas=5", "train.global_batch_size=1000"],
        ["train.global_batch_size=2000"],
        ["distribute.replicas=2", "train.epochs=2.5", "data.last_batch=drop"],
    ],
    ids=" ".join,
)
def test_the_replicas_ranges_are_those_of_the_stream_and_hold_each_example_once(
    digits: pathlib.Path, tmp_path: pathlib.Path, overrides: list[str]
) -> None:
    plan, config, topology = plan_with(digits, tmp_path, *overrides)
    found = find_examples(plan, config, topology, first_step=0)
    n, size = plan.data.num_train_examples, plan.replicas.global_batch_size
    num_steps = min(math.ceil(n / size), plan.schedule.num_train_steps)
    for replica in found.replicas:
        batches = drawn(plan, config, topology, replica.replica, range(num_steps))
        # The last batch may reach into the next epoch.
        start, stop = replica.slice
        batches[-1] = batches[-1][: max(0, min(stop, n - (num_steps - 1) * size) - start)]
        examples = [example for batch in batches for example in batch]
        assert replica.num_examples == len(examples)
        assert replica.digest == digest_of(examples)
        assert replica.next_examples == batches[0][:8]
        assert sum(replica.num_in_shard) == len(examples)
    assert sum(replica.num_examples for replica in found.replicas) == n
    assert (found.is_each_once, found.min_reads, found.max_reads, found.num_positions) == (True, 1, 1, n)


def test_a_run_that_goes_on_is_told_what_comes_next(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    plan, config, topology = plan_with(digits, tmp_path, "distribute.replicas=2", "train.epochs=3")
    first_step = 31
    found = find_examples(plan, config, topology, first_step=first_step)
    assert found.epoch == first_step * plan.replicas.global_batch_size // plan.data.num_train_examples == 1
    assert found.is_each_once
    for replica in found.replicas:
        (batch,) = drawn(plan, config, topology, replica.replica, [first_step])
        assert replica.next_examples == batch[:8]


def test_examples_lie_in_the_shards_that_are_named(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A dataset of several shards, of different sizes: the count is made of what each shard really holds."""
    from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset

    dataset = tmp_path / "sharded"
    prepare_dataset("digits", dataset, options=PrepareOptions(shard_bytes=40_000))
    plan, config, topology = plan_with(dataset, tmp_path, "distribute.replicas=2", "train.global_batch_size=100")
    found = find_examples(plan, config, topology, first_step=0)
    assert len(found.shards) > 2
    stream = make_training_stream(plan, config, topology, TrainInputs())
    for replica in found.replicas:
        steps = range(plan.schedule.num_train_steps)
        examples = [e for batch in drawn(plan, config, topology, replica.replica, steps) for e in batch]
        places = stream.reader.locate(np.array(examples))
        names = collections.Counter(stream.reader.paths[shard].name for shard in places.shards)
        assert dict(zip(found.shards, replica.num_in_shard, strict=True)) == names


def test_a_run_shorter_than_an_epoch_does_not_claim_all_examples(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    plan, config, topology = plan_with(digits, tmp_path, "train.epochs=0.5")
    found = find_examples(plan, config, topology, first_step=0)
    assert (found.is_each_once, found.min_reads, found.max_reads) == (False, 0, 1)
    assert found.num_positions == plan.schedule.num_positions < found.num_examples


def test_an_order_that_repeats_an_example_is_seen(
    digits: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The union is counted over what the order really gives."""
    draw = ExampleOrder.draw

    def repeating(order: ExampleOrder, positions: Any) -> Draws:
        draws = draw(order, positions)
        return draws._replace(examples=tf.where(draws.examples == 17, tf.constant(18, tf.int64), draws.examples))

    monkeypatch.setattr(ExampleOrder, "draw", repeating)
    plan, config, topology = plan_with(digits, tmp_path)
    found: Examples = find_examples(plan, config, topology, first_step=0)
    assert (found.is_each_once, found.min_reads, found.max_reads) == (False, 0, 2)


def test_batches_and_rates_add_up(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    overrides = ["distribute.replicas=3", "train.global_batch_size=50", "train.accumulate_steps=4", "train.epochs=2"]
    rates = ["optimizer.scaling=sqrt", "optimizer.scaling_batch_size=200", "optimizer.warmup_epochs=0.5"]
    plan, config, _ = plan_with(digits, tmp_path, *overrides, *rates)
    batches, rate = count_batches(plan, config), find_learning_rates(plan.epochs, config)
    assert (batches.num_train_steps - 1) * 50 + batches.last_batch_size == batches.num_positions == 2 * 1439
    assert batches.num_filled_up == 3 * 4 * 6 - 50
    empty = Batch(*(tf.zeros([batches.per_replica_batch_size]) for _ in range(5)))
    assert split_batch(empty, 4).weights.shape == [4, batches.chunk_size]
    assert rate.peak == plan.schedule.peak_learning_rate == pytest.approx(1e-3 * math.sqrt(50 / 200))
    assert rate.warmup_steps == plan.schedule.warmup_steps == math.ceil(1439 / 2 / 50)
    assert max(at.learning_rate for at in rate.at) == pytest.approx(rate.peak)


@pytest.mark.parametrize("every_steps", [None, 50])
def test_a_run_is_evaluated_and_saved_once_an_epoch(
    digits: pathlib.Path, tmp_path: pathlib.Path, every_steps: int | None
) -> None:
    # Of 1,439 images in batches of 64 an epoch is 22.5 steps.
    ends = [23, 45, 68, 90, 113, 135, 158, 180, 203, 225]
    overrides = ["train.epochs=10", f"checkpoint.every_steps={'null' if every_steps is None else every_steps}"]
    plan, _, _ = plan_with(digits, tmp_path, *overrides)
    due = [step for step in range(1, plan.schedule.num_train_steps + 1) if is_saving_due(plan, step)]
    assert due == sorted({*ends, *([] if every_steps is None else [50, 100, 150, 200])})
    assert plan.epochs.num_ends == 10 and plan.schedule.num_train_steps == 225


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.trainable=head", "optimizer.name=sgd"],
        ["model.batch_norm=per_replica", "train.ema_decay=0.9", "optimizer.name=adam"],
        ["distribute.precision=mixed_bfloat16", "train.accumulate_steps=2"],
    ],
    ids=" ".join,
)
def test_memory_is_that_of_the_state_that_training_builds(
    digits: pathlib.Path, tmp_path: pathlib.Path, overrides: list[str]
) -> None:
    plan, config, topology = plan_with(digits, tmp_path, *overrides)
    found = measure_footprint(plan, config, count_batches(plan, config))
    state = make_state(plan, config, make_engine(topology), store=None)

    def num_bytes(variables: Sequence[Any]) -> int:
        return sum(variable.numpy().nbytes for variable in variables)

    memory = found.memory
    gradients = num_bytes(state.model.trainable_variables)
    assert found.parameters.num_parameters == state.model.count_params()
    assert found.parameters.num_statistics == sum(math.prod(v.shape) for v in state.statistics)
    assert memory.parameters_bytes == num_bytes(state.model.variables)
    assert memory.gradients_bytes == gradients * (2 if config.train.num_parts > 1 else 1)
    assert memory.optimizer_slots_bytes == num_bytes(tf.nest.flatten(state.slots))
    assert memory.averages_bytes == num_bytes(state.averages)
    assert memory.input_batch_bytes == 64 * 32 * 32 * 3
    parts = memory.model_dump(exclude={"total_bytes"})
    assert memory.total_bytes == sum(parts.values())


def test_activations_take_half_in_16_bits_and_in_chunks_and_less_for_the_head_alone(
    digits: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def activations(*overrides: str) -> int:
        plan, config, _ = plan_with(digits, tmp_path, *overrides)
        return measure_footprint(plan, config, count_batches(plan, config)).memory.activations_bytes

    whole = activations()
    assert activations("distribute.precision=mixed_bfloat16") == pytest.approx(whole / 2, rel=0.02)
    assert activations("train.accumulate_steps=4") == whole / 4
    assert activations("model.trainable=head") < whole / 4


def build_tiny_backbone(shape: tuple[int, int, int]) -> Any:
    images = keras.Input(shape)
    x = keras.layers.Conv2D(8, 3, strides=2)(images)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Conv2D(12, 3, strides=2)(x)
    return keras.Model(images, keras.layers.BatchNormalization()(x))


def test_traffic_is_what_the_step_gives_the_engine_to_add_up(
    digits: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Backbone(name="tiny", image_size_px=32, scaling=PixelScaling(), build=build_tiny_backbone)
    monkeypatch.setitem(registry._REGISTRY, "tiny", tiny)
    overrides = ["model.backbone=tiny", "model.weights=none"]
    overrides += ["distribute.compression=float16", "train.global_batch_size=4", "optimizer.name=sgd"]
    plan, config, topology = plan_with(digits, tmp_path, *overrides, "model.batch_norm=synchronized")
    engine = make_engine(topology)
    reduced: list[list[Any]] = []
    all_reduce_sum = engine.all_reduce_sum

    def recorded(tensors: list[Any]) -> list[Any]:
        reduced.append([(tensor.shape.num_elements(), tensor.dtype) for tensor in tensors])
        return all_reduce_sum(tensors)

    engine.all_reduce_sum = recorded  # type: ignore[method-assign]
    state = make_state(plan, config, engine, store=None)
    step = TrainStep(engine, state, config, num_train_steps=plan.schedule.num_train_steps, jit_compile=False)
    stream = make_training_stream(plan, config, topology, TrainInputs())
    step(next(iter(engine.distribute(stream.dataset(0, 1)))))
    *forward, (*parts, sums) = reduced
    traffic = measure_footprint(plan, config, count_batches(plan, config)).traffic
    in_forward = sum(count * dtype.size for tensors in forward for count, dtype in tensors)
    assert in_forward > 0
    assert traffic.gradients_bytes == sum(count * dtype.size for count, dtype in parts if dtype == tf.float16)
    statistics = sum(count * dtype.size for count, dtype in parts if dtype == tf.float32)
    # What was added up on the way forward is added up again for its gradient.
    assert traffic.statistics_bytes == statistics + 2 * in_forward > 0
    assert traffic.sums_bytes == sums[0] * sums[1].size
    assert (traffic.replica_bytes, traffic.worker_network_bytes) == (0, 0)


def test_a_ring_of_n_moves_twice_n_minus_1_nths(
    digits: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, config, _ = plan_with(digits, tmp_path, "model.trainable=head")
    replicas = plan.replicas.model_copy(update={"num_replicas": 4, "num_workers": 2})
    plan = plan.model_copy(update={"replicas": replicas})
    traffic = measure_footprint(plan, config, count_batches(plan, config)).traffic
    total = traffic.gradients_bytes + traffic.statistics_bytes + traffic.sums_bytes
    assert traffic.replica_bytes == traffic.worker_network_bytes == round(1.5 * total)


def run_dry(dataset: pathlib.Path, run_dir: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("launch", f"--data={dataset}", f"--run-dir={run_dir}", *QUICK, "--dry-run", *arguments),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.horovod
def test_a_person_reads_every_section_and_commands_in_one_line(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run_dir = tmp_path / ("long" * 30)
    done = run_dry(digits, run_dir, "--strategy=horovod", "--replicas=2")
    assert done.returncode == 0, done.stderr
    headings = ["configuration", "run", "topology and engine", "batches", "learning rate", "examples of epoch 0"]
    headings += ["memory of a replica", "traffic of a step", "workers", "trainer doctor"]
    lines = done.stdout.splitlines()
    places = [next(i for i, line in enumerate(lines) if line.startswith(heading)) for heading in headings]
    assert places == sorted(places)
    assert "1439 reads of 1439 examples: each exactly once over all replicas" in lines
    (started,) = [line for line in lines if f"--data={digits}" in line and "run_module.py trainer launch" in line]
    assert f"--run-dir={run_dir}" in started
    assert "--dry-run" not in started
    assert any("HOROVOD_RANK=1" in line for line in lines)
    assert "<port of the launcher>" in done.stdout
    assert not run_dir.exists()


def test_the_document_has_every_section_and_what_doctor_finds_wrong(
    digits: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    hosts = [
        "--strategy=multiworker",
        "--hosts=no-such-host.invalid:2",
        "--set=distribute.ssh_options=[-oConnectTimeout=2]",
    ]
    done = run_dry(digits, tmp_path / "run", *hosts, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (finding,) = [finding for finding in document["findings"] if finding["check"] == "host no-such-host.invalid"]
    assert finding["verdict"] == "problem" and finding["fix"]
    assert all(finding["verdict"] in ("problem", "warning") for finding in document["findings"])
    assert document["schema_version"] == 1
    starts = document["workers"]["starts"]
    assert [start["host"] for start in starts] == ["no-such-host.invalid"] * 2
    assert all(start["guard"][0] == "ssh" and "-oConnectTimeout=2" in start["guard"] for start in starts)
    # No section hides a field of the plan, and those of the plan come first.
    plan_fields = list(json.loads(FLAT_PLAN.read_text(encoding="utf-8")))
    sections = {"config", "topology", "engine", "batches", "learning_rate", "examples", "footprint", "workers"}
    sections |= {"findings", "run_dir", "first_step"}
    assert list(document)[: len(plan_fields)] == plan_fields
    assert set(list(document)[len(plan_fields) :]) == sections


def test_secrets_of_other_programs_are_neither_forwarded_nor_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_TOKEN_app_terraform_io", "secret")
    monkeypatch.setenv("TF_VAR_password", "secret")
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_auto_jit=2")
    assert "secret" not in forwarded_variables().values()
    assert forwarded_variables()["TF_XLA_FLAGS"] == "--tf_xla_auto_jit=2"
