"""Show the progress of long work: a bar on a terminal, otherwise plain lines with timestamps.

Both go to standard error, so standard output holds only the answer of the command.
"""

import collections
import contextlib
import datetime
import math
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from trainer.console import output

LINE_EVERY_SECS = 10.0
RATE_WINDOW_SECS = 30.0


class StepRate:
    """The training speed in steps per second, over the last `RATE_WINDOW_SECS`.

    Measuring starts after the first step, which traces and compiles the graph. Time in a `paused` block, such as an
    evaluation, does not count.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start measuring; `clock` returns seconds and never goes back."""
        self._clock = clock
        self._paused_secs = 0.0
        self._seen: collections.deque[tuple[float, int]] = collections.deque()

    def update(self, step: int) -> None:
        """Record that `step` is done."""
        now = self._clock() - self._paused_secs
        self._seen.append((now, step))
        while len(self._seen) > 2 and now - self._seen[1][0] >= RATE_WINDOW_SECS:
            self._seen.popleft()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        start = self._clock()
        try:
            yield
        finally:
            self._paused_secs += self._clock() - start

    @property
    def steps_per_sec(self) -> float | None:
        """Steps per second; None until two updates are known."""
        if len(self._seen) < 2:
            return None
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - start) if end > start else None


class Epochs(Protocol):
    """The part of `data.sampling.epochs.Epochs` that progress needs; console may not import data."""

    @property
    def num_train_steps(self) -> int: ...

    def done_after(self, step: int) -> float:
        """Return the number of epochs done after `step` steps."""


class TrainingProgress:
    """The progress of a training: step, epoch, loss, accuracy, images per second and time left.

    A context manager. Call `update` after every step, or whenever there are metrics, and `note` for any other message.
    """

    def __init__(
        self,
        *,
        epochs: Epochs,
        global_batch_size: int,
        start_step: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        """Prepare the display.

        Args:
            epochs: the number of steps, and the epoch of each.
            global_batch_size: images per step.
            start_step: the step that was restored; 0 for a new run.
            console: where to print; None: standard error.
            clock: measures durations, in seconds.
            wall_clock: stamps plain lines.
        """
        self._epochs, self._num_train_steps = epochs, epochs.num_train_steps
        self._global_batch_size = global_batch_size
        self._console = console or output.console
        self._clock = clock
        self._rate = StepRate(clock)
        self._step = start_step
        self._metrics: dict[str, float] = {}
        self._lines = _Lines(self._console, clock, wall_clock)
        self._bar = _TrainingBar(self._console, epochs.num_train_steps, start_step) if _is_live(self._console) else None

    def __enter__(self) -> "TrainingProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show that `step` steps are done; `metrics` (`loss`, `accuracy`) are shown until they are given again."""
        self._step = step
        self._metrics.update(metrics)
        self._rate.update(step)
        if self._bar:
            self._bar.show(step, self._figures(), self._time_left())
        elif step == self._num_train_steps or self._lines.are_due():
            parts = [f"step {step:,}/{self._num_train_steps:,}", self._figures(), self._time_left()]
            self._lines.print("  ".join(part for part in parts if part), regular=True)

    def note(self, text: str) -> None:
        """Print `text`, such as the result of an evaluation, above the bar or as a line of its own."""
        self._lines.print(text)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block, such as an evaluation or a save, out of images per second."""
        with self._rate.paused():
            yield

    @property
    def images_per_sec(self) -> float | None:
        """Images per second over the last half minute, without the first step and pauses; None at first."""
        rate = self._rate.steps_per_sec
        return None if rate is None else rate * self._global_batch_size

    def _figures(self) -> str:
        done, of_all = (self._epochs.done_after(step) for step in (self._step, self._num_train_steps))
        figures = [f"epoch {done:.1f}/{of_all:.1f}"]
        if "loss" in self._metrics:
            figures.append(f"loss {self._metrics['loss']:.4f}")
        if "accuracy" in self._metrics:
            figures.append(f"accuracy {self._metrics['accuracy']:.3f}")
        if self.images_per_sec:
            figures.append(f"{self.images_per_sec:,.0f} images/s")
        return "  ".join(figures)

    def _time_left(self) -> str:
        rate, num_steps_left = self._rate.steps_per_sec, self._num_train_steps - self._step
        return f"{format_duration(num_steps_left / rate)} left" if rate and num_steps_left else ""


class TaskProgress:
    """A counter of the parts that are done; `task_progress` makes one."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more parts as done."""
        self._advance(amount)


@contextlib.contextmanager
def task_progress(
    description: str,
    total: int | None,
    *,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], datetime.datetime] = datetime.datetime.now,
) -> Iterator[TaskProgress]:
    """Show the progress of a task of `total` equal parts, such as the examples of a split; None: not known.

    Shows a bar on a terminal, otherwise a line every `LINE_EVERY_SECS` and one at the end. A block that ends without an
    exception counts as complete, also if it skipped some parts, such as the padding of an archive.
    """
    console = console or output.console
    if _is_live(console):
        with Progress(*_columns(), TimeRemainingColumn(), console=console, redirect_stdout=False) as bar:
            task = bar.add_task(description, total=total)
            yield TaskProgress(lambda amount: bar.advance(task, amount))
            num_done = int(bar.tasks[0].completed) if total is None else total
            bar.update(task, total=num_done, completed=num_done)
        return
    start = clock()
    lines = _Lines(console, clock, wall_clock, last=start)
    num_done = 0

    def advance(amount: int) -> None:
        nonlocal num_done
        num_done += amount
        if (total is None or num_done < total) and lines.are_due():
            lines.print(f"{description} {num_done:,}{of_total}", regular=True)

    of_total = "" if total is None else f"/{total:,}"
    yield TaskProgress(advance)
    all_done = num_done if total is None else total
    lines.print(f"{description} {all_done:,}{of_total} in {format_duration(clock() - start)}")


def format_duration(secs: float) -> str:
    """Return a duration as "3.2 s", "4:05" (minutes) or "2:04:05" (hours)."""
    if secs < 9.95:
        return f"{secs:.1f} s"
    if secs < 59.5:
        return f"{secs:.0f} s"
    minutes, seconds = divmod(round(secs), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _Lines:
    """A printer of plain lines, with timestamps unless the console is a terminal with a bar."""

    def __init__(
        self,
        console: Console,
        clock: Callable[[], float],
        wall_clock: Callable[[], datetime.datetime],
        last: float = -math.inf,
    ) -> None:
        """Start with `last`, the time of the last regular line; by default the first one is due at once."""
        self._console = console
        self._clock = clock
        self._wall_clock = wall_clock
        self._last = last

    def are_due(self) -> bool:
        return self._clock() - self._last >= LINE_EVERY_SECS

    def print(self, text: str, *, regular: bool = False) -> None:
        """Print a line; a `regular` one delays the next regular one by `LINE_EVERY_SECS`."""
        if regular:
            self._last = self._clock()
        stamp = "" if _is_live(self._console) else f"{self._wall_clock():%Y-%m-%d %H:%M:%S}  "
        self._console.print(Text(stamp + text), soft_wrap=True)


class _TrainingBar(Progress):
    """A progress bar with the figures below it; on one line they would not fit 80 columns."""

    def __init__(self, console: Console, num_train_steps: int, start_step: int) -> None:
        # rich would redirect standard output to the console, which is standard error.
        left = TextColumn("{task.fields[left]}", markup=False)
        super().__init__(*_columns(), left, console=console, redirect_stdout=False)
        self._task = self.add_task("train", total=num_train_steps, completed=start_step, figures="", left="")

    def show(self, step: int, figures: str, left: str) -> None:
        self.update(self._task, completed=step, figures=figures, left=left)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(f"      {task.fields['figures']}", style="dim")


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        of_total = "" if task.total is None else f"/{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}{of_total}")


def _columns() -> list[ProgressColumn]:
    return [
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=32),
        _Count(),
    ]


def _is_live(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal
