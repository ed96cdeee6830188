"""The checks in their order, and the process that each runs in: ... checks NAME DIRECTORY."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Final

from trainer.acceptance import all_reduce, engines, input_rate, killed, machine, memory, rates
from trainer.acceptance.result import Result, failed, read_results, write_results
from trainer.acceptance.work import Work
from trainer.errors import TrainerError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """A function that runs in a process of its own and gives one result or more.

    Attributes:
        expected: what each result expects, by its name.
        needs: the results that it cannot do without.
        limit_secs: after which its process is ended.
        run: called in that process, with the results so far by their names.
    """

    expected: dict[str, str]
    needs: tuple[str, ...] = ()
    limit_secs: float = 180.0
    run: Callable[[Work, dict[str, Result]], list[Result]]

    @property
    def name(self) -> str:
        return next(iter(self.expected))


def _engine(strategy: engines.Several) -> Check:
    return Check(
        expected={strategy: engines.EXPECTED_EQUAL},
        needs=(machine.DATASET, engines.SINGLE),
        run=lambda work, _: engines.check_engine(work, strategy),
    )


def _all_reduce(strategy: engines.Several) -> Check:
    return Check(
        expected={all_reduce.name_of(strategy): "the right sum, at a share of what the link allows"},
        needs=(machine.MACHINE,),
        run=lambda work, _: all_reduce.check_all_reduce(work, strategy),
    )


CHECKS: Final = (
    Check(expected={machine.MACHINE: machine.EXPECTED_MACHINE}, run=lambda work, _: machine.check_machine(work)),
    Check(
        expected={machine.DATASET: machine.EXPECTED_DATASET},
        needs=(machine.MACHINE,),
        run=lambda work, _: machine.check_dataset(work),
    ),
    Check(
        expected={engines.SINGLE: engines.EXPECTED_SINGLE},
        needs=(machine.DATASET,),
        run=lambda work, _: engines.check_single(work),
    ),
    _engine("mirrored"),
    _engine("multiworker"),
    _engine("horovod"),
    Check(
        expected={rates.COMPILATION: rates.EXPECTED_COMPILATION, rates.RATES: rates.EXPECTED_RATES},
        needs=(machine.DATASET,),
        limit_secs=480.0,
        run=lambda work, _: rates.check_rates(work),
    ),
    _all_reduce("mirrored"),
    _all_reduce("multiworker"),
    _all_reduce("horovod"),
    Check(
        expected={input_rate.INPUT: input_rate.EXPECTED},
        needs=(machine.DATASET, rates.RATES),
        run=input_rate.check_input,
    ),
    Check(
        expected={memory.MEMORY: memory.EXPECTED},
        needs=(machine.DATASET,),
        run=lambda work, _: memory.check_memory(work),
    ),
    Check(
        expected={killed.RESUME: killed.EXPECTED},
        needs=(machine.DATASET, engines.SINGLE),
        run=lambda work, _: killed.check_resume(work),
    ),
)


def choose_checks(names: list[str]) -> list[Check]:
    """Return the checks with a result in `names`, and those that they need, in order; all if `names` is empty."""
    wanted = set(names)
    for check in reversed(CHECKS):
        if wanted & check.expected.keys():
            wanted |= set(check.needs)
    return [check for check in CHECKS if not names or wanted & check.expected.keys()]


def result_names() -> list[str]:
    """Return the names of all results."""
    return [name for check in CHECKS for name in check.expected]


def results_file(work: Work, check: Check) -> pathlib.Path:
    """Return the file in which the process of `check` leaves its results."""
    return work.results_dir / f"{check.name}.json"


def main(name: str, directory: str) -> None:
    """Run the check `name` in this process; an error of ours is its failure."""
    work = Work.load(pathlib.Path(directory))
    check = next(check for check in CHECKS if check.name == name)
    files = [results_file(work, each) for each in CHECKS]
    before = {result.name: result for file in files if file.exists() for result in read_results(file)}
    try:
        results = check.run(work, before)
    except TrainerError as e:
        results = [failed(each, expected, "", str(e)) for each, expected in check.expected.items()]
    write_results(results_file(work, check), results)


if __name__ == "__main__":
    main(*sys.argv[1:])
