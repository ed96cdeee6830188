"""A dry run for a person to read: a heading and lines or a table for each section."""

import shlex
from collections.abc import Iterator
from typing import Any

from rich import box, filesize
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from trainer.distribute.elastic.options import is_elastic
from trainer.dry_run.document import DryRun
from trainer.dry_run.workers import WorkerStart
from trainer.plan.plan import Plan

_VERDICT_STYLES = {"warning": "yellow", "problem": "bold red"}
_NUM_DIGEST_CHARS = 12
_NUM_SHOWN = 4


def render(found: DryRun) -> Iterator[RenderableType]:
    """Yield the sections in order. Print text without wrapping, and tables with it."""
    yield _heading("configuration, every default written out") + found.planned.config.to_yaml().rstrip()
    yield _run(found)
    yield _topology_and_engine(found)
    yield _batches(found)
    yield _learning_rate(found)
    yield from _examples(found)
    yield _memory(found)
    yield _traffic(found)
    yield from _workers(found)
    yield from _findings(found)


def _run(found: DryRun) -> Text:
    plan = found.planned.plan
    data, model = plan.data, plan.model
    facts = {
        "run directory": found.run_dir,
        "starts at step": f"{found.planned.first_step} of {plan.schedule.num_train_steps}",
        "dataset": f"{data.dataset_dir} ({data.dataset_hash[:_NUM_DIGEST_CHARS]})",
        "images": f"{data.num_train_examples} to train on, {data.num_validation_examples} to validate, of "
        f"{len(data.class_names)} classes",
        "features": plan.features.reason,
        "cache": data.cache_reason,
        "model": f"{model.backbone}, {model.weights} weights, {model.image_size_px} px, trains {model.trainable}",
        **({"head": model.head_reason} if model.head_reason else {}),
        "checkpoint": _saving(plan),
        **{f"warning {i}": warning for i, warning in enumerate(plan.warnings, 1)},
    }
    return _heading("run") + _lines(facts)


def _saving(plan: Plan) -> str:
    """Say when checkpoints are saved."""
    num_ends = plan.epochs.num_ends
    ends = f"at the ends of epochs, {num_ends} time{'' if num_ends == 1 else 's'}"
    every_steps = plan.schedule.checkpoint_every_steps
    return ends if every_steps is None else f"every {every_steps} steps, and {ends}"


def _topology_and_engine(found: DryRun) -> Text:
    topology, engine = found.planned.topology, found.engine
    facts = {
        "strategy": f"{engine.strategy} (asked for: {engine.strategy_asked})",
        "replicas": f"{topology.num_replicas} on {engine.device}: {topology.num_workers} workers with "
        f"{topology.num_local_replicas} each",
        **_elastic(found),
        "collectives": engine.collectives,
        "precision": f"{engine.precision} (asked for: {engine.precision_asked})"
        f"{', with a loss scale' if engine.scales_loss else ''}",
        "XLA": f"{'on' if engine.xla else 'off'} (asked for: {engine.xla_asked})",
        "batch norm": engine.batch_norm,
        "compression": engine.compression,
        "packs": _or_default(engine.fusion_mib, "MiB"),
        "cycle time": _or_default(engine.cycle_time_ms, "ms"),
    }
    return _heading("topology and engine") + _lines(facts)


def _elastic(found: DryRun) -> dict[str, str]:
    config = found.planned.config.distribute
    if not is_elastic(config):
        return {}
    most = "what the hosts have" if config.max_replicas is None else str(config.max_replicas)
    return {"elastic": f"from {config.min_replicas or 1} replicas to {most}; what follows is for those that there are"}


def _batches(found: DryRun) -> Text:
    batches = found.batches
    facts = {
        "global batch": f"{batches.global_batch_size}: {batches.per_replica_batch_size} on each replica, with "
        f"{batches.num_filled_up} of weight zero in all",
        "chunks": f"{batches.accumulate_steps} a step, of {batches.chunk_size} examples on each replica",
        "epoch": f"{batches.num_examples} examples / {batches.global_batch_size} = {batches.steps_per_epoch:g} steps",
        "run": f"{batches.epochs:g} epochs = {batches.num_positions} examples = {batches.num_train_steps} steps, the "
        f"last of {batches.last_batch_size}",
    }
    return _heading("batches") + _lines(facts)


def _learning_rate(found: DryRun) -> Text:
    rate = found.learning_rate
    scaled = f" = {rate.setting:g} x {rate.factor:g} ({rate.scaling} with the batch, from {rate.scaling_batch_size})"
    facts = {
        "peak": f"{rate.peak:g}{'' if rate.scaling == 'none' else scaled}",
        "warm-up": f"{rate.warmup_steps} steps",
        "schedule": rate.schedule,
        **{f"at step {at.step}": f"{at.learning_rate:g}" for at in rate.at},
    }
    return _heading("learning rate") + _lines(facts)


def _examples(found: DryRun) -> Iterator[RenderableType]:
    examples = found.examples
    verdict = (
        "each exactly once over all replicas"
        if examples.is_each_once
        else f"each {examples.min_reads} to {examples.max_reads} times over all replicas"
    )
    yield _heading(f"examples of epoch {examples.epoch}") + (
        f"{examples.num_positions} reads of {examples.num_examples} examples: {verdict}"
    )
    table = _table("replica", "worker", "of each batch", "examples", "SHA-256", "shards", "next")
    for replica in examples.replicas:
        table.add_row(
            str(replica.replica),
            str(replica.worker),
            f"[{replica.slice[0]}, {replica.slice[1]})",
            str(replica.num_examples),
            replica.digest[:_NUM_DIGEST_CHARS],
            f"{sum(count > 0 for count in replica.num_in_shard)} of {len(examples.shards)}",
            " ".join(map(str, replica.next_examples[:_NUM_SHOWN])) + " ...",
        )
    yield table


def _memory(found: DryRun) -> Text:
    parameters, memory = found.footprint.parameters, found.footprint.memory
    facts = {
        "parameters": f"{filesize.decimal(memory.parameters_bytes)}: {parameters.num_parameters:,}, of which "
        f"{parameters.num_trainable:,} are trained",
        "gradients": filesize.decimal(memory.gradients_bytes),
        "optimizer": filesize.decimal(memory.optimizer_slots_bytes),
        "averages": filesize.decimal(memory.averages_bytes),
        "activations": f"about {filesize.decimal(memory.activations_bytes)}",
        "input batch": filesize.decimal(memory.input_batch_bytes),
        "total": f"about {filesize.decimal(memory.total_bytes)}, without the workspaces of the libraries",
    }
    return _heading("memory of a replica") + _lines(facts)


def _traffic(found: DryRun) -> Text:
    traffic = found.footprint.traffic
    facts = {
        "gradients": filesize.decimal(traffic.gradients_bytes),
        "statistics": filesize.decimal(traffic.statistics_bytes),
        "each replica": f"{filesize.decimal(traffic.replica_bytes)} out and in, in a ring "
        f"({traffic.ring_factor:.3g} times the sum)",
        "each worker": f"{filesize.decimal(traffic.worker_network_bytes)} to and from the others",
    }
    return _heading("traffic of a step") + _lines(facts)


def _workers(found: DryRun) -> Iterator[RenderableType]:
    workers = found.workers
    first = workers.starts[0]
    common = {
        name: value
        for name, value in first.environment.items()
        if all(start.environment.get(name) == value for start in workers.starts)
    }
    yield _heading("workers") + f"started by {workers.started_by}; the same for all:"
    yield _command(common, first.command)
    for start in workers.starts:
        own = f" on {start.host}\n{_own_part(start, common, first)}"
        yield Text.assemble((f"worker {start.worker}", "bold"), own)
    if workers.filled_in:
        yield "known at the start, when the hosts are asked: " + ", ".join(workers.filled_in)


def _own_part(start: WorkerStart, common: dict[str, str], first: WorkerStart) -> str:
    lines = [] if start.guard is None else [f"  guard    {shlex.join(start.guard)}"]
    own = {name: value for name, value in start.environment.items() if name not in common}
    if own or start.command != first.command:
        lines.append(f"  also     {_command(own, [] if start.command == first.command else start.command)}")
    return "\n".join(lines or ["  nothing of its own"])


def _command(environment: dict[str, str], command: list[str]) -> str:
    """Return the command line for a shell."""
    return " ".join(
        [*(f"{name}={shlex.quote(value)}" for name, value in environment.items()), *map(shlex.quote, command)]
    )


def _findings(found: DryRun) -> Iterator[RenderableType]:
    if not found.findings:
        yield _heading("trainer doctor") + "finds nothing wrong"
        return
    heading = _heading("trainer doctor")
    heading.rstrip()
    yield heading
    table = _table("", "part", "found", "fix")
    for finding in found.findings:
        style = _VERDICT_STYLES[finding.verdict]
        table.add_row(Text(finding.verdict, style=style), finding.check, Text(finding.found), Text(finding.fix))
    yield table


def _heading(title: str) -> Text:
    return Text.assemble("\n", (title, "bold underline"), "\n")


def _lines(facts: dict[str, str]) -> Text:
    width = max(map(len, facts))
    lines = (Text.assemble((f"{name:<{width}}", "bold"), f"  {value}") for name, value in facts.items())
    return Text("\n").join(lines)


def _table(*columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, header_style="bold")


def _or_default(value: Any, unit: str) -> str:
    return "as the library does by itself" if value is None else f"{value:g} {unit}"
