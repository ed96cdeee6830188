"""One training, on every engine, gives the losses of a plain loop over whole batches; and XLA really computes it.

Each job makes all its trainings in the same few processes, started as a user's are; its tests look at what these wrote.
By default, one replica makes every combination of precision, XLA and accumulation, two make those in which any two
choices meet, workers of MPI two, and three replicas the one with XLA and in parts; XLA leaves out LLVM's optimisations.
TRAINER_TESTS_COMPLETE=1 leaves out nothing.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from plain_training import train_plainly
from training_jobs import Job, Worker, run_job
from training_runs import (
    NUM_PROFILED_STEPS,
    STARVED_FROM_STEP,
    Outcome,
    TrainingRun,
    assign_flat,
    build_model,
    make_evaluator,
    open_test_split,
    train,
)

from scripts import build_horovod
from tests.complete import IS_COMPLETE
from trainer.distribute import mirrored
from trainer.distribute.topology import Topology
from trainer.evaluation.evaluator import Evaluator
from trainer.step import forward_backward, losses, state_update

pytestmark = pytest.mark.slow

HOROVOD = [Job("horovod", 2, "gloo"), Job("horovod", 3, "gloo")]
if build_horovod.find_mpi():
    HOROVOD.append(Job("horovod", 2, "mpi"))
JOBS = [
    Job("single", 1, "memory"),
    *(Job("mirrored", n, "memory") for n in (2, 3)),
    *(Job("multiworker", n, "grpc") for n in (2, 3)),
    *(pytest.param(job, marks=pytest.mark.horovod) for job in HOROVOD),
]
each_job = pytest.mark.parametrize("workers", JOBS, ids=str, indirect=True)

# Relative, for losses; a gradient in bfloat16 has fewer digits.
LOSS_TOLERANCE = {"float32": 1e-5, "mixed_bfloat16": 2e-3}
NORM_TOLERANCE = {"float32": 1e-5, "mixed_bfloat16": 3e-2}
HLO_DTYPE = {"float32": "f32", "mixed_bfloat16": "bf16"}
# Of the two convolutional layers: forward, and what comes back for their kernels and for their inputs.
CONVOLUTIONS = ("Conv2D", "Conv2DBackpropFilter", "Conv2DBackpropInput")


def frozen_runs(job: Job) -> list[TrainingRun]:
    """Precisions, XLA and accumulation combined; 10 examples divide neither by three nor into two even parts."""
    choices = itertools.product(("float32", "mixed_bfloat16"), (False, True), (1, 2))
    runs = [TrainingRun(precision=p, jit_compile=xla, accumulate_steps=n) for p, xla, n in choices]
    if not IS_COMPLETE:
        chosen = {1: range(8), 2: (0, 3, 5, 6), 3: (3,)}[job.num_replicas] if job.transport != "mpi" else (3, 4)
        runs = [runs[i] for i in chosen]
    if job.num_replicas == 3:
        return [dataclasses.replace(run, global_batch_size=10) for run in runs]
    return [*runs, TrainingRun(global_batch_size=10, accumulate_steps=2)] if job.num_replicas == 1 else runs


def runs_of(job: Job) -> list[TrainingRun]:
    b = frozen_runs(job)[0].global_batch_size
    synchronized = TrainingRun(batch_norm="synchronized", global_batch_size=b)
    per_replica = TrainingRun(batch_norm="per_replica", global_batch_size=b)
    averages_statistics = job.num_replicas == 2 and (IS_COMPLETE or job.transport != "mpi")
    starved = TrainingRun(room=3, global_batch_size=b)
    starves = job.num_replicas < 3 and (IS_COMPLETE or job.transport != "mpi")
    more = [per_replica] * averages_statistics + [starved] * starves
    return [*frozen_runs(job), synchronized, *more]


@dataclasses.dataclass
class Finished:
    job: Job
    workers: list[Worker]

    def outcomes(self, *batch_norms: str) -> list[tuple[TrainingRun, Outcome]]:
        """Of every worker, for the runs with one of these kinds of batch normalisation."""
        runs = runs_of(self.job)
        return [
            (run, outcome)
            for worker in self.workers
            for run, outcome in zip(runs, worker.outcomes, strict=True)
            if run.batch_norm in batch_norms
        ]


@pytest.fixture(scope="module")
def workers(request: pytest.FixtureRequest, digits: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    job: Job = request.param
    out_dir = tmp_path_factory.mktemp("job")
    flags = "" if IS_COMPLETE else "--xla_backend_optimization_level=0"
    found = run_job(job, runs_of(job), out_dir=out_dir, dataset_dir=digits, xla_flags=flags)
    assert len(found) == (job.num_replicas if job.strategy in ("multiworker", "horovod") else 1)
    assert {(worker.num_replicas, worker.transport) for worker in found} == {(job.num_replicas, job.transport)}
    return Finished(job, found)


@each_job
def test_losses_and_gradients_are_those_of_a_plain_loop(workers: Finished) -> None:
    for run, outcome in workers.outcomes("frozen"):
        expected = train_plainly(dataclasses.replace(run, jit_compile=False, accumulate_steps=1))
        assert_close(run, outcome, expected)


@each_job
def test_where_memory_does_not_suffice_all_workers_make_the_same_step_again_in_more_parts(workers: Finished) -> None:
    """The losses and gradients are compared by the test before this one."""
    for run, outcome in workers.outcomes("frozen"):
        if run.room is None:
            assert outcome.notes == [], run.name
            continue
        b = run.global_batch_size // workers.job.num_replicas
        doubled = [n for n in (1, 2, 4, 8) if b // n > run.room]
        assert len(outcome.notes) == len(doubled) >= 2
        for note, n in zip(outcome.notes, doubled, strict=True):
            assert note.startswith(f"memory did not suffice for step {STARVED_FROM_STEP + 1} on ")
            assert note.endswith(f"with the batch in {n} parts; making it again in {2 * n}")


@each_job
def test_with_synchronised_statistics_too_and_the_moving_statistics_are_those_of_the_whole_batch(
    workers: Finished,
) -> None:
    for run, outcome in workers.outcomes("synchronized"):
        expected = train_plainly(run)
        assert_close(run, outcome, expected)
        # Weights and moving statistics; the frozen ones would still be at 0 and 1.
        np.testing.assert_allclose(outcome.variables, expected.variables, rtol=1e-4, atol=1e-5, err_msg=run.name)


@each_job
def test_all_replicas_end_with_the_same_bits(workers: Finished) -> None:
    for run, outcome in workers.outcomes("frozen", "synchronized", "per_replica"):
        assert outcome.num_different_replicas == 0, run.name
    first, *others = workers.workers
    for other in others:
        for of_first, of_other in zip(first.outcomes, other.outcomes, strict=True):
            assert of_other.losses == of_first.losses
            assert of_other.variables == of_first.variables
            assert of_other.logits == of_first.logits


@each_job
def test_xla_compiled_forward_and_backward_in_the_asked_precision_and_ran_nothing_else(workers: Finished) -> None:
    num_local_replicas = workers.job.num_replicas // len(workers.workers)
    for run, outcome in workers.outcomes("frozen"):
        if run.jit_compile:
            asked = {(operation, HLO_DTYPE[run.precision]) for operation in CONVOLUTIONS}
            assert set(map(tuple, outcome.compiled_convolutions)) == asked, run.name
            # On each replica, forward and backward are one module and the update is another.
            num_executions = (2 * NUM_PROFILED_STEPS * num_local_replicas, 0)
        else:
            assert outcome.compiled_convolutions == [], run.name
            num_convolutions = (2 + 2 + 1) * run.accumulate_steps
            num_executions = (0, num_convolutions * NUM_PROFILED_STEPS * num_local_replicas)
        if outcome.was_profiled:
            assert (outcome.num_executions, outcome.num_loose_convolutions) == num_executions, run.name


@pytest.fixture(scope="module")
def evaluators(digits: pathlib.Path) -> Iterator[dict[int, tuple[Any, Evaluator]]]:
    """For 1, 2 and 4 replicas, a model and its evaluation."""
    with open_test_split(digits) as reader:
        found = {}
        for num_replicas in (1, 2, 4):
            engine = make_local_engine(num_replicas)
            with engine.scope():
                model = build_model(TrainingRun(batch_norm="per_replica"))
            found[num_replicas] = (model, make_evaluator(engine, model, reader))
        yield found


@each_job
def test_evaluation_after_training_gives_the_same_numbers_on_1_2_and_4_replicas(
    workers: Finished, evaluators: dict[int, tuple[Any, Evaluator]]
) -> None:
    """The job's own replicas, with the statistics that they trained with, and others that are given those of one."""
    for run, outcome in workers.outcomes("synchronized", "per_replica"):
        logits = np.array(outcome.logits)
        assert np.ptp(logits, axis=0).min() > 0.01, "the answer must depend on the image"
        for model, evaluator in evaluators.values():
            assign_flat(model, outcome.variables)
            np.testing.assert_allclose(evaluator.run()[1], logits, rtol=1e-5, atol=1e-6, err_msg=run.name)


FAULTS = {
    "loss": (losses, "softmax_losses", lambda right: lambda *a: 1.01 * right(*a)),
    "gradient": (state_update, "clipping_factor", lambda right: lambda norm, clip_norm: 1.01 * right(norm, clip_norm)),
    "clipping": (state_update, "clipping_factor", lambda right: lambda norm, clip_norm: right(norm, 1.01 * clip_norm)),
    "accumulation": (forward_backward, "split_batch", lambda right: _with_a_lighter_first_part(right)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_scale_that_is_wrong_by_a_hundredth_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainingRun(accumulate_steps=2)
    expected = train_plainly(dataclasses.replace(run, accumulate_steps=1))
    module, name, make_wrong = FAULTS[fault]
    monkeypatch.setattr(module, name, make_wrong(getattr(module, name)))
    _, outcome = train(run, make_local_engine(1))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(run, outcome, expected)


def _with_a_lighter_first_part(split_batch: Any) -> Any:
    def split(batch: Any, num_parts: int) -> Any:
        parts = split_batch(batch, num_parts)
        return parts._replace(weights=parts.weights * np.array([[0.99], [1.0]], np.float32))

    return split


def make_local_engine(num_replicas: int) -> Any:
    strategy = "single" if num_replicas == 1 else "mirrored"
    return mirrored.make_engine(Topology(strategy=strategy, device="cpu", num_local_replicas=num_replicas))


def assert_close(run: TrainingRun, outcome: Outcome, expected: Outcome) -> None:
    np.testing.assert_allclose(outcome.losses, expected.losses, rtol=LOSS_TOLERANCE[run.precision], err_msg=run.name)
    np.testing.assert_allclose(
        outcome.gradient_norms, expected.gradient_norms, rtol=NORM_TOLERANCE[run.precision], err_msg=run.name
    )
