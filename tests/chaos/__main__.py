"""Kill training runs at random moments and compare their ends, or let two commands collide.

    python -m tests.chaos run | damages | collisions | control | summary

`make chaos` goes on until the goal is reached (see `results.py`); what has been interrupted goes on when it is started
again, and `--kills`, `--minutes` and `--strategies` make it shorter. Results are in .chaos/results.jsonl.
"""

import argparse
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from tests.chaos import results as of_results
from tests.chaos.results import STRATEGIES, Results

_DEFAULT_WORK = pathlib.Path(".chaos")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("command", choices=["run", "damages", "collisions", "control", "summary"])
    parser.add_argument("--work", type=pathlib.Path, default=_DEFAULT_WORK, help="where datasets, runs and results are")
    parser.add_argument("--results", type=pathlib.Path, help="the file of results; results.jsonl in --work by default")
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="of: %(default)s")
    parser.add_argument("--kills", type=int, help="stop after so many kills; without it, when the goal is reached")
    parser.add_argument("--kills-per-run", type=int, default=4, help="the most of one run; %(default)s by default")
    parser.add_argument("--minutes", type=float, help="start no further run after so many minutes")
    parser.add_argument(
        "--number", type=int, default=of_results.GOAL_DAMAGES, help="of damages; %(default)s by default"
    )
    parser.add_argument("--pairs", type=int, help="of commands in each place; without it, up to the goal")
    parser.add_argument("--places", help="of collisions: one host, two hosts, leases; all of them by default")
    parser.add_argument("--seed", default="chaos", help="of the moments and the places; %(default)s by default")
    arguments = parser.parse_args()
    results = Results(arguments.results or arguments.work / "results.jsonl")
    arguments.work.mkdir(parents=True, exist_ok=True)
    # As Ctrl-C does: the job that runs is ended with the harness.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if arguments.command == "run":
        status = _run(arguments, results)
    elif arguments.command == "damages":
        status = _damages(arguments, results)
    elif arguments.command == "collisions":
        status = _collisions(arguments, results)
    elif arguments.command == "control":
        status = _control(arguments, results)
    else:
        status = 0
    print(of_results.summary(results), flush=True)
    return status


def _run(arguments: argparse.Namespace, results: Results) -> int:
    """Return 1 if a run was not as it must be."""
    wanted = arguments.strategies.split(",")
    if unknown := set(wanted) - set(STRATEGIES):
        raise SystemExit(f"{', '.join(unknown)} is no strategy; expected some of {','.join(STRATEGIES)}")

    _import_for_all_jobs()
    from tests.chaos.trial import Reference, make_reference, run_trial

    _clear_leftovers(arguments.work)
    dataset = _prepare_digits(arguments.work)
    references: dict[str, Reference] = {}
    deadline_secs = time.monotonic() + 60 * (arguments.minutes or 1e9)
    num_killed = num_failed = 0
    while time.monotonic() < deadline_secs and (
        strategy := _next_strategy(wanted, results, arguments.kills, num_killed)
    ):
        if strategy not in references:
            work = arguments.work / f"reference-{strategy}-{os.getpid()}"
            work.mkdir()
            references[strategy] = make_reference(strategy, dataset, work)
            shutil.rmtree(work)
            made = references[strategy]
            _tell(
                f"{strategy}: {made.num_steps} steps end with {made.evidence.sha256}; {made.start_secs:.1f} s to start"
            )
        number = results.next_number(strategy)
        seed = f"{arguments.seed}/{strategy}/{number}"
        num_kills = min(arguments.kills_per_run, (arguments.kills or 10**9) - num_killed)
        work = arguments.work / f"run-{strategy}-{number}-{os.getpid()}"
        line = run_trial(references[strategy], dataset, work, seed, num_kills)
        results.append({**line, "number": number})
        num_killed += len(line["kills"])
        num_failed += (line["outcome"], line["tensorboard"]) != ("equal", "equal")
        inside = sum(kill["inside_save"] for kill in line["kills"])
        _tell(f"{seed}: {len(line['kills'])} kills, {inside} inside a save, {line['secs']} s: {line['outcome'][:2000]}")
    return int(num_failed > 0)


def _import_for_all_jobs() -> None:
    """Import once what all jobs that are forked need; nothing of TensorFlow may run in this process."""
    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=False)
    import trainer.cli.app
    import trainer.launch.run_session  # noqa: F401


def _collisions(arguments: argparse.Namespace, results: Results) -> int:
    """Return 1 if one of two commands did not train, or the other did not say why not."""
    _import_for_all_jobs()
    from tests.chaos import collisions
    from tests.chaos.trial import make_reference

    wanted = collisions.PLACES if arguments.places is None else tuple(arguments.places.split(","))
    if not collisions.can_have_hosts():
        _tell("collisions on one host alone: namespaces are not allowed here")
        wanted = ("one host",)
    _clear_leftovers(arguments.work)
    dataset = _prepare_digits(arguments.work)
    work = arguments.work.resolve() / f"collisions-{os.getpid()}"
    work.mkdir()
    reference = make_reference("single", dataset, work)
    num_failed = 0
    for place in wanted:
        there = sum(line["place"] == place for line in results.read("collision"))
        num_pairs = of_results.GOAL_COLLISIONS - there if arguments.pairs is None else arguments.pairs
        for number in range(num_pairs):
            line = collisions.collide(reference, dataset, work / f"{place.replace(' ', '-')}-{number}", place)
            results.append(line)
            num_failed += line["outcome"] != "one trained"
            _tell(f"{place}, {number}: {line['outcome']}, the {('first', 'second', None)[line['winner'] or 0]}")
    if not num_failed:
        shutil.rmtree(work)
    return int(num_failed > 0)


def _next_strategy(wanted: list[str], results: Results, num_wanted: int | None, num_killed: int) -> str | None:
    """Return the strategy with the fewest kills while one lacks some, then the cheapest; None when there are enough."""
    if num_wanted is not None and num_killed >= num_wanted:
        return None
    counts = {strategy: len(results.kills(strategy)) for strategy in wanted}
    fewest = min(wanted, key=lambda strategy: counts[strategy])
    if num_wanted is not None or counts[fewest] < of_results.GOAL_OF_STRATEGY:
        return fewest
    kills = results.kills()
    if len(kills) >= of_results.GOAL_KILLS and sum(k["inside_save"] for k in kills) >= of_results.GOAL_INSIDE_SAVE:
        return None
    return min(wanted, key=STRATEGIES.index)


def _damages(arguments: argparse.Namespace, results: Results) -> int:
    from tests.chaos.damage import inject

    number = arguments.number if arguments.number is not None else of_results.GOAL_DAMAGES - results.num_damages()
    if number <= 0:
        return 0
    seed = f"{arguments.seed}/damages/{results.num_damages()}"
    work = arguments.work / f"damages-{os.getpid()}"
    work.mkdir()
    started_secs = time.monotonic()
    try:
        with _small_disk(work) as disk:
            tally = inject(
                number,
                seed,
                work,
                disk,
                lambda count: _tell(f"{count:,} damages") if count % 1000 == 0 else None,
            )
    finally:
        shutil.rmtree(work)
    secs = round(time.monotonic() - started_secs, 1)
    results.append({"kind": "damages", "seed": seed, "detected": dict(tally), "secs": secs})
    return 0


def _control(arguments: argparse.Namespace, results: Results) -> int:
    from tests.chaos.keras_control import run_control

    num_killed = 0
    deadline_secs = time.monotonic() + 60 * (arguments.minutes or 1e9)
    control = run_control(arguments.work, seed=arguments.seed, kills_per_run=arguments.kills_per_run)
    for line in control:
        results.append(line)
        num_killed += line["num_kills"]
        _tell(str(line))
        if num_killed >= (arguments.kills or 100) or time.monotonic() > deadline_secs:
            break
    control.close()
    return 0


def _clear_leftovers(work: pathlib.Path) -> None:
    """Remove what harnesses that were killed themselves have left in `work`; each directory ends with a process id."""
    for path in work.glob("*-*[0-9]"):
        pid = path.name.rpartition("-")[2]
        if path.is_dir() and not path.name.startswith("failed-") and not pathlib.Path("/proc", pid).exists():
            if (path / "disk").is_mount():
                subprocess.run(["umount", "-l", str(path / "disk")], check=True, timeout=600)
            shutil.rmtree(path, ignore_errors=True)


def _prepare_digits(work: pathlib.Path) -> pathlib.Path:
    """Prepare scikit-learn's digits once, in a process of its own."""
    from tests.chaos import jobs

    dataset = work / "digits"
    if not (dataset / "manifest.json").exists():
        job = jobs.spawn(["prepare", "digits", "--out", str(dataset.resolve())], work / "prepare.txt")
        if job.wait() != 0:
            raise SystemExit(job.output())
    return dataset.resolve()


@contextlib.contextmanager
def _small_disk(work: pathlib.Path) -> Iterator[pathlib.Path | None]:
    """Mount a file system of 1 MiB; yield None where that is not allowed."""
    path = work / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    mounted = subprocess.run(mount, capture_output=True, text=True, timeout=600)
    if mounted.returncode != 0:
        _tell(f"no damages by a full disk: a file system cannot be mounted here ({mounted.stderr.strip()})")
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=600)


def _tell(message: str) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    sys.exit(main())
