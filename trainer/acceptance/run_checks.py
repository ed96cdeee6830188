"""Run the checks one after the other, each in a process of its own and under a time limit."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trainer.acceptance import machine
from trainer.acceptance.checks import Check, result_names, results_file
from trainer.acceptance.result import Report, Result, failed, not_run, read_results
from trainer.acceptance.work import WORK_DIR_NAME, Work, last_lines, log_file
from trainer.console.progress import format_duration
from trainer.distribute.topology import Device
from trainer.errors import UsageError
from trainer.system import stop_signals
from trainer.system.child_python import python_command

# For the processes of a check to end by themselves, as a launch does that saves; then they are killed.
_GRACE_SECS = 20.0
_LOOK_EVERY_SECS = 0.05


class _Interrupted(BaseException):
    """A signal asked to stop."""


def run_checks(
    work: Work, checks: Sequence[Check], note: Callable[[str], None], *, limit_secs: float | None = None
) -> Report:
    """Run `checks` in the empty directory of `work`; the report is written there after each of them.

    What they trained is removed if none fails; their logs stay. After SIGINT, SIGTERM or SIGHUP the check in progress
    is ended, and those that are left are not run.

    Args:
        work: where to work, and how much.
        checks: in order, each after those that it needs.
        note: called with a line before and after each check.
        limit_secs: for each check, in place of its own limit.
    """
    work.results_dir.mkdir()
    report = Report(size=work.size_name)
    started, left = time.monotonic(), list(checks)
    with _signals_interrupt():
        try:
            for number, check in enumerate(checks, 1):
                note(f"[{number}/{len(checks)}] {', '.join(check.expected)}")
                results = _run_or_leave_out(work, check, limit_secs or check.limit_secs, report.checks)
                left.remove(check)
                report.checks += results
                work = _learn(work, check, report)
                report.secs = round(time.monotonic() - started, 1)
                report.save(work.directory)
                for line in map(_describe, results):
                    note(line)
            report.is_complete = True
        except _Interrupted as e:
            report.checks += [
                not_run(name, expected, f"interrupted ({e})")
                for check in left
                for name, expected in check.expected.items()
            ]
    report.secs = round(time.monotonic() - started, 1)
    report.save(work.directory)
    if report.is_accepted:
        shutil.rmtree(work.directory / WORK_DIR_NAME, ignore_errors=True)
    return report


def check_names(names: Sequence[str]) -> None:
    """Raise UsageError if one of `names` is not the name of a result."""
    known = result_names()
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"--only is {unknown[0]!r}, which is no check; the checks are {', '.join(known)}")


def claim_directory(directory: pathlib.Path) -> None:
    """Create `directory`; raise UsageError if something is in it."""
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise UsageError(f"--out is {directory}, and there is something in it; name a new directory")


def _run_or_leave_out(work: Work, check: Check, limit_secs: float, before: Sequence[Result]) -> list[Result]:
    passed_before = {result.name for result in before if result.outcome == "passed"}
    if missing := [name for name in check.needs if name not in passed_before]:
        reason = f"it needs the check {missing[0]}, which has not passed"
        return [not_run(name, expected, reason) for name, expected in check.expected.items()]
    started = time.monotonic()
    results = _run(work, check, limit_secs)
    secs = round(time.monotonic() - started, 1)
    return [result.model_copy(update={"secs": secs}) for result in results]


def _run(work: Work, check: Check, limit_secs: float) -> list[Result]:
    """Run `check` in a process; without its results, it has failed."""
    work.save()
    file, log = results_file(work, check), log_file(work, f"check-{results_file(work, check).stem}")
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  this very program
            python_command("trainer.acceptance.checks", check.name, str(work.directory)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        status = process.wait(limit_secs)
    except subprocess.TimeoutExpired:
        reason = f"it has not ended within {limit_secs:g} s: {last_lines(log)}"
    else:
        if status == 0 and file.exists():
            return read_results(file)
        reason = f"its process ended with status {status}: {last_lines(log)}"
    finally:
        _end(process)
    return [failed(name, expected, "", reason) for name, expected in check.expected.items()]


def _end(process: "subprocess.Popen[Any]") -> None:
    """End the process of a check and the commands that it runs, which are in its group."""
    for number, grace_secs in ((signal.SIGTERM, _GRACE_SECS), (signal.SIGKILL, _GRACE_SECS)):
        if not _signal_group(process.pid, number):
            break
        deadline = time.monotonic() + grace_secs
        while time.monotonic() < deadline:
            process.poll()  # a process that has ended belongs to its group until it is waited for
            if not _signal_group(process.pid, 0):
                break
            time.sleep(_LOOK_EVERY_SECS)


def _signal_group(group: int, number: int) -> bool:
    """Return False if no process of the group is left."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _learn(work: Work, check: Check, report: Report) -> Work:
    """Return `work` with what the first check found out about the machine."""
    figures = report.checks[-1].figures
    if check.name != machine.MACHINE or not figures:
        return work
    device: Device = figures["device"]
    report.device, report.num_replicas = device, figures["num_replicas"]
    report.environment = json.loads((work.results_dir / machine.ENVIRONMENT_FILE).read_text(encoding="utf-8"))
    return dataclasses.replace(work, device=device, num_replicas=report.num_replicas)


def _describe(result: Result) -> str:
    told = " -- ".join(text for text in (result.seen, result.reason) if text)
    return f"      {result.outcome} in {format_duration(result.secs)}: {result.name}: {told}"


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    def interrupt(number: int) -> None:
        raise _Interrupted(signal.Signals(number).name)

    with stop_signals.handling(interrupt):
        yield
