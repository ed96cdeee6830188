"""The document that `trainer launch --dry-run` shows to people and prints with `--json`.

This module owns the format of the JSON document: the fields of `RUN/plan.json`, then the run directory, the first step
and a section for each part.
"""

import dataclasses
import pathlib
from typing import Any, Final

from trainer.dry_run.arithmetic import BatchArithmetic, LearningRate, count_batches, find_learning_rates
from trainer.dry_run.examples import Examples, find_examples
from trainer.dry_run.footprint import Footprint, measure_footprint
from trainer.dry_run.machine import Engine, FindingOfDoctor, describe_engine, find_problems
from trainer.dry_run.workers import Workers, list_workers
from trainer.launch.plan_run import RUNS_DIR, PlannedRun

SCHEMA_VERSION: Final = 1
# In place of the name of a run, which is the time of its start.
_TIME = "<time of the start>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DryRun:
    """Everything that a launch with the same arguments will do, and the problems of this machine."""

    planned: PlannedRun
    run_dir: str
    engine: Engine
    batches: BatchArithmetic
    learning_rate: LearningRate
    examples: Examples
    footprint: Footprint
    workers: Workers
    findings: list[FindingOfDoctor]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document."""
        planned = self.planned
        topology = planned.topology
        return {
            **planned.plan.model_dump(mode="json"),
            "schema_version": SCHEMA_VERSION,
            "run_dir": str(planned.run.path),
            "first_step": planned.first_step,
            "config": planned.config.model_dump(mode="json"),
            "topology": {
                "strategy": topology.strategy,
                "device": topology.device,
                "num_workers": topology.num_workers,
                "num_local_replicas": topology.num_local_replicas,
                "num_replicas": topology.num_replicas,
                "min_replicas": planned.config.distribute.min_replicas,
                "max_replicas": planned.config.distribute.max_replicas,
                "hosts": list(dict.fromkeys(start.host for start in self.workers.starts)),
            },
            "engine": self.engine.model_dump(mode="json"),
            "batches": self.batches.model_dump(mode="json"),
            "learning_rate": self.learning_rate.model_dump(mode="json"),
            "examples": self.examples.model_dump(mode="json"),
            "footprint": self.footprint.model_dump(mode="json"),
            "workers": self.workers.model_dump(mode="json"),
            "findings": [finding.model_dump(mode="json") for finding in self.findings],
        }


def make_dry_run(planned: PlannedRun, *, is_run_dir_given: bool) -> DryRun:
    """Compute the dry run: build the model, read the indexes of the shards and ask the hosts, but start nothing.

    Raises:
        UsageError: The launch would fail with the same error.
    """
    plan, config = planned.plan, planned.config
    # An existing run has its name; a new one without a name is named after the time.
    is_named = is_run_dir_given or planned.run.exists()
    run_dir = planned.run.path.resolve() if is_named else pathlib.Path(RUNS_DIR).resolve() / _TIME
    batches = count_batches(plan, config)
    return DryRun(
        planned=planned,
        run_dir=str(run_dir),
        engine=describe_engine(plan, config),
        batches=batches,
        learning_rate=find_learning_rates(plan.epochs, config),
        examples=find_examples(plan, config, planned.topology, first_step=planned.first_step),
        footprint=measure_footprint(plan, config, batches),
        workers=list_workers(planned, run_dir=str(run_dir)),
        findings=find_problems(planned),
    )
