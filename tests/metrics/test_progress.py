import datetime
import io

import pytest
from rich.console import Console

from trainer.console.progress import StepRate, TrainingProgress, format_duration, task_progress
from trainer.data.sampling.epochs import Epochs


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.secs = 1000.0

    def __call__(self) -> float:
        return self.secs


@pytest.fixture
def clock() -> Clock:
    return Clock()


def noon() -> datetime.datetime:
    return datetime.datetime(2025, 6, 1, 12, 0, 0)


def training(console: Console, clock: Clock, *, start_step: int = 0, **changes) -> TrainingProgress:
    epochs = {"num_examples": 320, "batch_size": 32, "num_train_steps": 100, "num_positions": 3200} | changes
    return TrainingProgress(
        console=console,
        clock=clock,
        wall_clock=noon,
        epochs=Epochs(**epochs),
        global_batch_size=32,
        start_step=start_step,
    )


def plain() -> Console:
    return Console(file=io.StringIO(), width=80)


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})


def lines_of(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def test_off_a_terminal_a_line_comes_every_ten_seconds_and_at_the_last_step(clock):
    console = plain()
    with training(console, clock) as progress:
        for step in range(1, 101):
            clock.secs += 0.25
            progress.update(step, {"loss": 1 / step, "accuracy": step / 100})
    lines = lines_of(console)
    assert [line.split()[3] for line in lines] == ["1/100", "41/100", "81/100", "100/100"]
    # 4 steps a second of 32 images; 59 steps are left at step 41.
    assert lines[1] == (
        "2025-06-01 12:00:00  step 41/100  epoch 4.1/10.0  loss 0.0244  accuracy 0.410  128 images/s  15 s left"
    )
    assert "left" not in lines[-1]


def test_the_first_step_which_traces_the_graph_is_not_in_the_rate(clock):
    with training(plain(), clock) as progress:
        clock.secs += 60
        progress.update(1, {})
        assert progress.images_per_sec is None
        for step in (2, 3, 4):
            clock.secs += 0.5
            progress.update(step, {})
        assert progress.images_per_sec == pytest.approx(64)


def test_a_resumed_run_measures_from_its_own_first_step(clock):
    with training(plain(), clock, start_step=50) as progress:
        clock.secs += 60
        progress.update(51, {})
        clock.secs += 1
        progress.update(53, {})
        assert progress.images_per_sec == pytest.approx(64)


def test_pauses_are_not_in_the_rate(clock):
    with training(plain(), clock) as progress:
        progress.update(1, {})
        clock.secs += 1
        progress.update(2, {})
        with progress.paused():
            clock.secs += 100
        clock.secs += 1
        progress.update(3, {})
        assert progress.images_per_sec == pytest.approx(32)


def test_the_rate_forgets_what_is_older_than_its_window(clock):
    rate = StepRate(clock)
    for step in range(200):
        clock.secs += 1 if step < 100 else 0.5
        rate.update(step)
    assert rate.steps_per_sec == pytest.approx(2)


def test_the_rate_is_unknown_where_no_time_has_passed(clock):
    rate = StepRate(clock)
    rate.update(1)
    rate.update(2)
    assert rate.steps_per_sec is None


def test_a_note_is_a_line_of_its_own_with_its_brackets_and_keeps_the_rhythm(clock):
    console = plain()
    long_note = "step 10: saved [bold]checkpoints[/] " + "x" * 100
    with training(console, clock) as progress:
        progress.update(1, {})
        clock.secs += 6
        progress.note(long_note)
        clock.secs += 6
        progress.update(2, {})
    lines = lines_of(console)
    assert lines[1] == f"2025-06-01 12:00:00  {long_note}"
    assert lines[2].startswith("2025-06-01 12:00:00  step 2/100")


@pytest.mark.parametrize("width", [80, 140])
def test_on_a_terminal_the_bar_and_every_figure_fit(clock, width):
    console = terminal(width)
    with training(console, clock, num_train_steps=100_000, num_examples=320_000, num_positions=3_200_000) as progress:
        progress.update(50_000, {"loss": 1.25, "accuracy": 0.875})
        clock.secs += 1
        progress.update(50_100, {})
        progress.note("step 50,100: validation accuracy 0.9 [sic]")
    shown = console.file.getvalue()
    for text in ("50,100/100,000", "epoch 5.0/10.0", "loss 1.2500", "accuracy 0.875", "3,200 images/s", "8:19 left"):
        assert text in shown
    assert "step 50,100: validation accuracy 0.9 [sic]\n" in shown
    assert "…" not in shown


def test_on_a_dumb_terminal_there_are_plain_lines(clock):
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    with training(console, clock) as progress:
        progress.update(1, {"loss": 1.0})
    assert lines_of(console) == ["2025-06-01 12:00:00  step 1/100  epoch 0.1/10.0  loss 1.0000"]


def test_a_task_off_a_terminal_says_where_it_is_and_when_it_is_done(clock):
    console = plain()
    with task_progress("evaluate test", 2000, console=console, clock=clock, wall_clock=noon) as task:
        for _ in range(20):
            clock.secs += 1
            task.advance(100)
    assert lines_of(console) == [
        "2025-06-01 12:00:00  evaluate test 1,000/2,000",
        "2025-06-01 12:00:00  evaluate test 2,000/2,000 in 20 s",
    ]


@pytest.mark.parametrize("make_console", [plain, terminal])
@pytest.mark.parametrize(
    ("total", "amounts", "ends_at"),
    [
        # What is left of an archive behind its end mark, or read twice, is done as well.
        (2000, (100, 400), "2,000/2,000"),
        (2000, (1900, 400), "2,000/2,000"),
        (None, (1900, 400), "2,300"),
    ],
)
def test_a_task_that_is_finished_ends_at_its_total(make_console, clock, total, amounts, ends_at):
    console = make_console()
    with task_progress("index", total, console=console, clock=clock, wall_clock=noon) as task:
        for amount in amounts:
            clock.secs += 20
            task.advance(amount)
    assert ends_at in lines_of(console)[-1 if make_console is plain else -2]
    assert "None" not in console.file.getvalue()


def test_a_task_that_fails_does_not_claim_to_be_done(clock):
    console = plain()
    with (
        pytest.raises(ZeroDivisionError),
        task_progress("export", 2, console=console, clock=clock, wall_clock=noon) as task,
    ):
        task.advance()
        raise ZeroDivisionError
    assert lines_of(console) == []


def test_a_task_on_a_terminal_is_a_bar(clock):
    console = terminal()
    with task_progress("evaluate [test]", 2, console=console, clock=clock) as task:
        task.advance(2)
    assert "evaluate [test]" in console.file.getvalue()
    assert "2/2" in console.file.getvalue()


@pytest.mark.parametrize(
    ("secs", "text"),
    [(0, "0.0 s"), (3.21, "3.2 s"), (9.97, "10 s"), (59.4, "59 s"), (59.6, "1:00"), (245, "4:05"), (7445, "2:04:05")],
)
def test_durations_read_as_a_person_writes_them(secs, text):
    assert format_duration(secs) == text
