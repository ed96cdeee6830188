"""A run that is killed several times and resumed each time, and must end as the run that was never killed."""

import contextlib
import dataclasses
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import psutil

from tests import small_backbone
from tests.chaos import jobs
from tests.chaos.damage import KINDS, damage
from tests.chaos.evidence import Evidence, check_whole, difference_of_points, first_difference, read_evidence
from tests.chaos.jobs import Job, Victim
from tests.chaos.saves import SaveWatch, finished_steps, unfinished_saves

FORKED: Final = ("single", "mirrored")
SAVE_EVERY_STEPS: Final = 3
# All that a step may keep or draw: averages, parts of a batch, dropout, changed images.
SETTINGS: Final = (
    "--device=cpu",
    *small_backbone.OPTIONS,
    "--set=model.image_size_px=16",
    "--set=model.dropout=0.2",
    "--set=augment.preset=light",
    "--set=train.epochs=3",
    "--set=train.ema_decay=0.9",
    "--set=train.accumulate_steps=2",
    "--set=log.every_steps=1",
    f"--set=checkpoint.every_steps={SAVE_EVERY_STEPS}",
)
_P_SAVE, _P_DAMAGE, _P_FULL_DISK = 0.5, 0.2, 0.1
_SMALL_DISK_MIB = 24


class FailedError(Exception):
    """The run was not what it must be; the message says in what."""


@dataclasses.dataclass
class Reference:
    """The run that was never killed, and how long its parts took (of the runs after it too, since machines are busy).

    Attributes:
        start_secs: from the command to the first line of metrics.
        step_secs: of a step, with its share of saves and evaluations.
        save_secs: from the first to the last system call of a save.
    """

    strategy: str
    evidence: Evidence
    num_steps: int
    start_secs: float
    step_secs: float
    save_secs: float

    def remaining_secs(self, step: int) -> float:
        """Return how long an attempt that goes on from `step` is expected to take."""
        return self.start_secs + (self.num_steps - step) * self.step_secs


class Trial:
    """One run directory, its attempts and the kills."""

    def __init__(self, strategy: str, dataset: pathlib.Path, work: pathlib.Path, reference: Reference | None) -> None:
        """Prepare a run in the new directory `work`; `reference` is None for the run that will be it."""
        self.strategy, self.dataset, self.work, self.reference = strategy, dataset, work, reference
        self.run_dir = work / "run"
        self.checkpoints = self.run_dir / "checkpoints"
        self._num_attempts = 0
        self._has_ended = False
        self.kills: list[dict[str, Any]] = []

    def start(self) -> Job:
        """Start the command of the run, the same each time."""
        self._num_attempts += 1
        output_file = self.work / f"attempt-{self._num_attempts}.txt"
        arguments = launch_arguments(self.strategy, self.dataset, self.run_dir)
        if self.is_forked:
            return jobs.fork(lambda: run_command(arguments), output_file)
        return jobs.spawn(arguments, output_file)

    @property
    def is_forked(self) -> bool:
        return self.strategy in FORKED

    def newest_step(self) -> int:
        return max(finished_steps(self.checkpoints), default=0)

    def attempt_to_kill(self, chance: random.Random, *, in_save: bool | None = None) -> bool:
        """Start or resume the run and kill it; return False if it has ended before the moment came.

        Raises:
            FailedError: it has ended by itself, and not well.
        """
        assert self.reference is not None
        victim: Victim = "group" if self.is_forked else chance.choice(["launcher", "worker", "chief", "group"])
        in_save = chance.random() < _P_SAVE if in_save is None else in_save
        if in_save and victim in ("launcher", "worker"):
            victim = "chief"  # it alone saves; after the end of another it may finish its save
        before, left_before = self.newest_step(), unfinished_saves(self.checkpoints)
        job = self.start()
        try:
            if in_save:
                targets, due_after_secs = self._wait_inside_save(job, victim, chance)
            else:
                due_after_secs = chance.random() * self.reference.remaining_secs(before)
                _sleep_until(job, job.started_secs + due_after_secs)
                job.look()
                targets = job.find(victim)
            if not targets and job.status() is None:
                victim, targets = "launcher", job.find("launcher")
            was_killed = jobs.kill(targets)
            after_secs = time.monotonic() - job.started_secs
            status = job.wait()
            job.wait_until_gone()
        finally:
            jobs.kill(job.processes())
        if status == 0:
            self._check_end(job)
            return False
        if not was_killed:
            raise FailedError(f"attempt {self._num_attempts} ended with status {status}: {job.output()[-2000:]}")
        self.kills.append(
            {
                "attempt": self._num_attempts,
                "moment": "save" if in_save else "random",
                "due_secs": round(due_after_secs, 4),
                "after_secs": round(after_secs, 4),
                "victim": "process" if self.is_forked else victim,
                "status": status,
                "inside_save": bool(unfinished_saves(self.checkpoints) - left_before),
                "from_step": before,
                "newest_step": self.newest_step(),
            }
        )
        return True

    def _wait_inside_save(self, job: Job, victim: Victim, chance: random.Random) -> tuple[list[psutil.Process], float]:
        """Return when one of the next saves has gone on for a random part of its duration, or the job has ended.

        Returns:
            the processes of `victim`, looked for before, since that takes longer than a save; and the seconds.
        """
        assert self.reference is not None
        num_left = (self.reference.num_steps - self.newest_step()) // SAVE_EVERY_STEPS
        # The one before it shows how long a save takes now, and that all processes are there.
        number, part = chance.randint(2, max(2, min(8, num_left - 1))), chance.random()
        while not self.checkpoints.is_dir() and job.status() is None:
            time.sleep(0.001)
        if job.status() is not None:
            return [], 0.0
        watch = SaveWatch(self.checkpoints)
        try:
            targets: list[psutil.Process] = []
            while number and job.status() is None:
                number -= watch.wait_for_beginning(0.05)
                targets = targets or (job.find(victim) if number == 1 else [])
            if watch.durations_secs:
                self.reference.save_secs = statistics.median(watch.durations_secs)
            _sleep_exactly(part * self.reference.save_secs)
        finally:
            watch.close()
        return targets, part * self.reference.save_secs

    def _check_output(self, job: Job) -> None:
        if "Traceback" in job.output():
            raise FailedError(f"attempt {self._num_attempts} printed a traceback: {job.output()[-3000:]}")

    def damage_newest(self, chance: random.Random) -> str | None:
        """Damage the newest of several checkpoints after the last kill; return what was done."""
        steps = finished_steps(self.checkpoints)
        newest = self.checkpoints / f"step-{steps[-1]:08d}" if len(steps) > 1 else None
        if newest is None or not any(newest.iterdir()):
            return None
        return damage(newest, chance.choice(KINDS), chance.random())

    def resume_on_full_disk(self) -> str:
        """Fill the disk, start the command, which must refuse in a sentence or train without a save; make room again.

        Raises:
            FailedError: it printed a traceback, or lost a checkpoint.
        """
        before = finished_steps(self.checkpoints)
        ballast = self.work / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        free_bytes = shutil.disk_usage(self.work).free
        output_dir = self.work
        self.work = self.work.parent  # the output of the attempt needs room
        try:
            job = self.start()
            status = job.wait()
            job.wait_until_gone()
        finally:
            self.work = output_dir
            ballast.unlink()
        self._check_output(job)
        if status == 0:
            raise FailedError("the run ended with status 0 on a full disk")
        if not set(before[-1:]) <= set(finished_steps(self.checkpoints)):
            raise FailedError(f"the checkpoint of step {before[-1:]} was lost on a full disk")
        last_line = job.output().strip().splitlines()[-1:] or [""]
        return f"full disk ({free_bytes} bytes free): status {status}, {last_line[0][:300]}"

    def finish(self) -> None:
        """Resume the run for the last time and let it end, if it has not.

        Raises:
            FailedError: it does not.
        """
        if self._has_ended:
            return
        job = self.start()
        status = job.wait()
        job.wait_until_gone()
        if status != 0:
            raise FailedError(f"the last attempt ended with status {status}: {job.output()[-3000:]}")
        self._check_end(job)

    def _check_end(self, job: Job) -> None:
        self._has_ended = True
        self._check_output(job)
        if self.kills and self.kills[-1].get("damage") and "trying the one of step" not in job.output():
            raise FailedError(f"no word of the damage {self.kills[-1]['damage']}: {job.output()[-2000:]}")


def make_reference(strategy: str, dataset: pathlib.Path, work: pathlib.Path) -> Reference:
    """Train without a kill, and learn how long the parts take.

    Raises:
        FailedError: the run fails, or its metrics have gaps or doubles.
    """
    trial = Trial(strategy, dataset, work, None)
    started_secs, first_secs = time.monotonic(), 0.0
    job, watch = trial.start(), None
    try:
        while job.status() is None:
            if watch is None and trial.checkpoints.is_dir():
                watch = SaveWatch(trial.checkpoints)
                first_secs = time.monotonic() - started_secs
            if watch is None:
                time.sleep(0.005)
            else:
                watch.wait_for_beginning(0.05)
    finally:
        jobs.kill(job.processes())
    total_secs = time.monotonic() - started_secs
    if job.status() != 0:
        raise FailedError(f"the run without a kill ended with status {job.status()}: {job.output()[-3000:]}")
    evidence = read_evidence(trial.run_dir)
    num_steps = evidence.info["global_step"]
    if problem := check_whole(evidence, num_steps):
        raise FailedError(problem)
    return Reference(
        strategy=strategy,
        evidence=evidence,
        num_steps=num_steps,
        start_secs=first_secs,
        step_secs=(total_secs - first_secs) / num_steps,
        save_secs=statistics.median(watch.durations_secs) if watch and watch.durations_secs else 0.005,
    )


def run_trial(
    reference: Reference, dataset: pathlib.Path, work: pathlib.Path, seed: str, num_kills: int
) -> dict[str, Any]:
    """Kill a run up to `num_kills` times, resume it each time, and compare its end; return the line for the results."""
    chance, started_secs = random.Random(seed), time.monotonic()
    with _place(work, chance.random() < _P_FULL_DISK) as (place, is_small):
        trial = Trial(reference.strategy, dataset, place, reference)
        sha256 = tensorboard = None
        try:
            while len(trial.kills) < num_kills and trial.attempt_to_kill(chance):
                if is_small and len(trial.kills) == 1 and trial.newest_step():
                    trial.kills[-1]["full_disk"] = trial.resume_on_full_disk()
                elif chance.random() < _P_DAMAGE and (told := trial.damage_newest(chance)):
                    trial.kills[-1]["damage"] = told
            trial.finish()
            evidence = read_evidence(trial.run_dir)
            sha256 = evidence.sha256
            outcome = first_difference(evidence, reference.evidence) or "equal"
            tensorboard = difference_of_points(evidence, reference.evidence)
        except (FailedError, TimeoutError, AssertionError) as e:
            outcome = str(e) or repr(e)
        if outcome != "equal":
            shutil.copytree(place, work.with_name(f"failed-{work.name}"), dirs_exist_ok=True)
    return {
        "kind": "run",
        "strategy": reference.strategy,
        "seed": seed,
        "outcome": outcome,
        "tensorboard": tensorboard or "equal",
        "sha256": sha256,
        "reference": reference.evidence.sha256,
        "secs": round(time.monotonic() - started_secs, 1),
        "kills": trial.kills,
    }


@contextlib.contextmanager
def _place(work: pathlib.Path, is_small: bool) -> Iterator[tuple[pathlib.Path, bool]]:
    """Yield an empty directory for a run and whether it is a small disk; remove it at the end."""
    shutil.rmtree(work, ignore_errors=True)
    place = work / "disk"
    place.mkdir(parents=True)
    if is_small:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={_SMALL_DISK_MIB}m", "tmpfs", str(place)]
        is_small = subprocess.run(mount, capture_output=True, timeout=600).returncode == 0
    try:
        yield place, is_small
    finally:
        if is_small:
            subprocess.run(["umount", "-l", str(place)], check=True, timeout=600)
        shutil.rmtree(work)


def launch_arguments(strategy: str, dataset: pathlib.Path, run_dir: pathlib.Path) -> list[str]:
    """Return the arguments of `trainer` that train in `run_dir`."""
    replicas = () if strategy == "single" else ("--replicas=2",)
    return [
        "launch", f"--data={dataset}", f"--run-dir={run_dir}", f"--strategy={strategy}", *replicas, *SETTINGS
    ]  # fmt: skip


def run_command(arguments: list[str]) -> None:
    """Run `trainer` with `arguments` in this process."""
    from trainer.cli.app import main

    sys.argv = ["trainer", *arguments]
    main()


def _sleep_until(job: Job, moment_secs: float) -> None:
    while job.status() is None and (left := moment_secs - time.monotonic()) > 0:
        time.sleep(min(left, 0.02))


def _sleep_exactly(secs: float) -> None:
    """Wait for milliseconds, which time.sleep may overrun on a busy machine."""
    until = time.perf_counter() + secs
    while time.perf_counter() < until:
        pass
