"""The results of the chaos harness: one line of JSON for each finished run, in a file that only grows."""

import datetime
import json
import os
import pathlib
import statistics
import subprocess
from collections import Counter
from typing import Any, Final

STRATEGIES: Final = ("single", "mirrored", "multiworker", "horovod")
# What is to be shown in all: kills, those inside a save, those of each strategy, and damages of checkpoints.
GOAL_KILLS, GOAL_INSIDE_SAVE, GOAL_OF_STRATEGY, GOAL_DAMAGES = 1000, 200, 100, 10_000
# Of two commands on one run directory, in each place.
GOAL_COLLISIONS: Final = 50
Line = dict[str, Any]


class Results:
    """Lines of a file; a torn last one, of a harness that was killed itself, is left out."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def append(self, line: Line) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stamped = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            **line,
        }
        content = self.path.read_bytes() if self.path.exists() else b""
        with self.path.open("ab") as file:
            if content and not content.endswith(b"\n"):
                file.write(b"\n")
            file.write(json.dumps(stamped).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self, kind: str) -> list[Line]:
        lines = []
        for text in self.path.read_bytes().splitlines() if self.path.exists() else []:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if line["kind"] == kind:
                lines.append(line)
        return lines

    def kills(self, strategy: str | None = None) -> list[Line]:
        """Return the kills in finished runs."""
        return [kill for run in self.read("run") if strategy in (None, run["strategy"]) for kill in run["kills"]]

    def next_number(self, strategy: str) -> int:
        """Return the number of the next run of `strategy`, from which its seed is made."""
        return 1 + max((run["number"] for run in self.read("run") if run["strategy"] == strategy), default=0)

    def num_damages(self) -> int:
        """Return the number of damages of checkpoints alone that were detected."""
        return sum(sum(line["detected"].values()) for line in self.read("damages"))


def commit() -> str:
    """Return the commit of the working tree, with a + if it has been changed since."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"], capture_output=True, text=True, timeout=600
    )
    return described.stdout.strip() or "unknown"


def summary(results: Results) -> str:
    """Return the totals as text."""
    runs = results.read("run")
    rows = [("strategy", "runs", "equal", "kills", "inside a save", "damages", "minutes")]
    for strategy in (*STRATEGIES, None):
        of = [run for run in runs if strategy in (None, run["strategy"])]
        kills = [kill for run in of for kill in run["kills"]]
        rows.append(
            (
                strategy or "all",
                str(len(of)),
                str(sum(run["outcome"] == "equal" for run in of)),
                str(len(kills)),
                str(sum(kill["inside_save"] for kill in kills)),
                str(sum(bool(kill.get("damage")) for kill in kills)),
                f"{sum(run['secs'] for run in of) / 60:.0f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    victims = Counter(kill["victim"] for kill in results.kills())
    lines.append("killed: " + (", ".join(f"{who} {count}" for who, count in victims.most_common()) or "nobody"))
    failures = [run for run in runs if run["outcome"] != "equal"]
    broken = [run for run in runs if run["tensorboard"] != "equal"]
    if broken:
        lines.append(
            f"{len(broken)} runs with gaps or doubles, such as {broken[0]['seed']}: {broken[0]['tensorboard']}"
        )
    lines += [f"FAILED {run['seed']}: {run['outcome']}" for run in failures]
    lines += _damages(results) + _collisions(results) + _control(results)
    lines.append(
        f"goal: {GOAL_KILLS} kills, {GOAL_INSIDE_SAVE} inside a save, {GOAL_OF_STRATEGY} of each strategy, "
        f"{GOAL_DAMAGES:,} damages, {GOAL_COLLISIONS} collisions in each place"
    )
    return "\n".join(lines)


def _damages(results: Results) -> list[str]:
    tally: Counter[str] = Counter()
    for line in results.read("damages"):
        tally.update(line["detected"])
    if not tally:
        return []
    return [f"damages detected: {tally.total():,} ({', '.join(f'{kind} {count:,}' for kind, count in tally.items())})"]


def _collisions(results: Results) -> list[str]:
    lines = results.read("collision")
    by_place = Counter(line["place"] for line in lines if line["outcome"] == "one trained")
    told = ", ".join(f"{place} {count} (the first {_first(lines, place)})" for place, count in by_place.items())
    failures = [f"FAILED collision on {e['place']}: {e['outcome']}" for e in lines if e["outcome"] != "one trained"]
    return ([f"collisions in which one trained: {told}"] if told else []) + failures


def _first(lines: list[Line], place: str) -> int:
    return sum(line["place"] == place and line["winner"] == 0 for line in lines)


def _control(results: Results) -> list[str]:
    runs = results.read("control")
    if not runs:
        return []
    kills, torn = sum(run["num_kills"] for run in runs), sum(run["num_torn"] for run in runs)
    ended = [run for run in runs if run["error"] is None]
    more = [run["num_updates"] - run["num_expected"] for run in ended] or [0]
    equal = sum(run["is_equal"] for run in ended)
    return [
        f"control, Keras's BackupAndRestore: {len(runs)} runs, {kills} kills, {torn} torn files, "
        f"{len(runs) - len(ended)} runs could not go on, {equal} ended with equal weights; updates too many: "
        f"{statistics.median(more):.0f} in the median, {min(more)} to {max(more)}, of {runs[0]['num_expected']}"
    ]
