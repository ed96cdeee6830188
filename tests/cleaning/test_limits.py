"""Ages and sizes as people type them."""

import math
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.cleaning.entry import Entry
from trainer.cleaning.limits import Limits, choose, format_age, parse_age, parse_limits, parse_size
from trainer.errors import UsageError

SECS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@given(number=st.integers(0, 10**9 - 1), unit=st.sampled_from(sorted(SECS)), space=st.sampled_from(["", " "]))
def test_an_age_is_a_number_and_a_unit(number: int, unit: str, space: str) -> None:
    assert parse_age(f"{number}{space}{unit}") == number * SECS[unit]


@given(number=st.decimals(0, 10**6, places=3), unit=st.sampled_from(sorted(UNITS)))
def test_a_size_is_a_number_and_a_unit(number: float, unit: str) -> None:
    assert math.isclose(parse_size(f"{number}{unit}"), float(number) * UNITS[unit], rel_tol=1e-9, abs_tol=1)


@given(st.text(max_size=12))
def test_any_other_text_is_refused_with_an_example(text: str) -> None:
    for parse, example in ((parse_age, "--older-than 7d"), (parse_size, "--keep 20GB")):
        try:
            value = parse(text)
        except UsageError as e:
            assert example in str(e)
        else:
            assert 0 <= value < math.inf and any(character.isdigit() for character in text)


def test_a_week_without_either_limit_and_no_age_with_a_size_alone() -> None:
    assert parse_limits(None, None) == Limits(older_than_secs=7 * 86400, keep_bytes=None)
    assert parse_limits(None, "1kB") == Limits(older_than_secs=None, keep_bytes=1000)
    assert parse_limits("1h", "1kB") == Limits(older_than_secs=3600, keep_bytes=1000)


@pytest.mark.parametrize(("secs", "text"), [(-5, "0 s"), (59, "59 s"), (60, "1 min"), (7199, "1 h"), (9e5, "10 d")])
def test_an_age_is_told_in_its_largest_unit(secs: float, text: str) -> None:
    assert format_age(secs) == text


ENTRIES = st.builds(
    Entry,
    path=st.just(pathlib.Path("x")),
    kind=st.sampled_from(["cache", "features", "xla", "unfinished", "checkpoint"]),
    what=st.just(""),
    num_bytes=st.integers(0, 100),
    used_at_secs=st.floats(-2e5, 10),
    kept_because=st.sampled_from(["", "", "held"]),
    is_certain=st.booleans(),
)


@given(st.lists(ENTRIES, max_size=8), st.none() | st.floats(0, 2e5), st.none() | st.integers(0, 300))
def test_nothing_that_a_rule_keeps_goes_and_the_rest_obeys_both_limits(
    entries: list[Entry], older_than_secs: float | None, keep_bytes: int | None
) -> None:
    decisions = choose(entries, Limits(older_than_secs=older_than_secs, keep_bytes=keep_bytes), now_secs=0.0)
    assert [decision.entry for decision in decisions] == entries and all(decision.reason for decision in decisions)
    free = [d for d in decisions if not d.entry.kept_because and d.entry.is_certain and d.entry.used_at_secs < -60]
    for decision in decisions:
        if decision.action == "remove":
            assert not decision.entry.kept_because
            assert decision.entry.is_certain or decision.entry.used_at_secs <= -86400
        elif decision in free and older_than_secs is not None:
            assert -decision.entry.used_at_secs < older_than_secs
    kept = [d for d in free if d.action == "keep"]
    if keep_bytes is not None and kept:
        assert sum(d.entry.num_bytes for d in decisions if d.action == "keep") <= keep_bytes
