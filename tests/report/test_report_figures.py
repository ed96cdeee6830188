import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trainer.report.figures import format_number, line_chart, log_ticks, nice_ticks, thin_out
from trainer.report.render import format_percent

values = st.floats(-1e9, 1e9).filter(lambda v: v == 0 or abs(v) > 1e-9)
positive = st.floats(1e-12, 1e9)


@given(values, values)
def test_ticks_are_few_even_and_cover_the_range(a, b):
    low, high = min(a, b), max(a, b)
    assume(high - low > 1e-6 * max(abs(low), abs(high)))
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 6
    assert ticks[0] <= low + 1e-6 * step and ticks[-1] >= high - 1e-6 * step
    assert all(right - left == pytest.approx(step) for left, right in itertools.pairwise(ticks))
    mantissa = step / 10 ** math.floor(math.log10(step * (1 + 1e-9)))
    assert min(abs(mantissa - nice) for nice in (1, 2, 5)) < 1e-6


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.71, 1, [0.7, 0.8, 0.9, 1]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (3, 3, [0, 1, 2, 3]),
        (-3, -3, [-3, -2, -1, 0]),
    ],
)
def test_ticks_are_those_a_person_would_draw(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


@given(positive, positive)
def test_logarithmic_ticks_are_powers_of_ten_around_the_range(a, b):
    ticks = log_ticks(min(a, b), max(a, b))
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= min(a, b) * (1 + 1e-9) and ticks[-1] >= max(a, b) * (1 - 1e-9)
    assert all(math.log10(tick) == pytest.approx(round(math.log10(tick))) for tick in ticks)


@given(st.lists(values, min_size=1, max_size=300), st.integers(1, 20))
def test_thinning_keeps_both_ends_the_order_and_every_extreme(ys, max_buckets):
    points = list(enumerate(ys))
    kept = thin_out(points, max_buckets)
    assert len(kept) <= 2 * max_buckets + 2
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(kept) and set(kept) <= set(points)
    assert {min(ys), max(ys)} <= {y for _, y in kept}


@given(
    st.lists(st.integers(-(10**7), 10**7).map(lambda v: v / 1000) | st.sampled_from([math.nan, math.inf]), min_size=1)
)
def test_a_chart_draws_every_finite_value_inside_its_frame_and_counts_the_others(ys):
    finite = [y for y in ys if math.isfinite(y)]
    chart = line_chart("Loss", {"train": list(enumerate(ys, 1))}, format_value=str)
    if not finite:
        assert chart is None
        return
    (line,) = chart.lines
    assert line.path.count("L") == len(finite) - 1
    assert all(-1e-6 <= position <= 1 + 1e-6 for dot in line.dots for position in dot)
    assert line.last == str(finite[-1])
    num_hidden = len(ys) - len(finite)
    assert chart.note == (f"{num_hidden} not finite, not drawn" if num_hidden else "")


def test_a_wide_range_of_positive_values_gets_a_logarithmic_axis():
    points = [(1, 2.0), (2, 0.2), (3, 0.002)]
    chart = line_chart("Loss", {"train": points}, format_value=str, low=0, may_be_log=True)
    assert chart.note == "logarithmic"
    assert [tick.label for tick in chart.y_ticks] == ["0.001", "0.01", "0.1", "1", "10"]
    assert [round(y, 3) for _, y in chart.lines[0].dots] == [0.825, 0.575, 0.075]
    assert line_chart("Loss", {"train": points}, format_value=str, low=0).note == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (3e-05, "3e-05"), (12.5, "12.5"), (1200, "1,200"), (40_000, "40k"), (1.5e6, "1.5M")],
)
def test_numbers_on_axes_are_short(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0.0%"), (1e-5, "<0.1%"), (0.1234, "12.3%"), (0.99996, ">99.9%"), (1, "100.0%")]
)
def test_a_percentage_is_never_rounded_to_a_certainty(share, text):
    assert format_percent(share) == text
