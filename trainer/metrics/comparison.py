"""Significance tests for the difference between two models on the same examples."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from trainer.metrics.bootstrap import NUM_RESAMPLES, SEED, Statistic, estimates, interval_around, resample
from trainer.metrics.scores import Bools


class Difference(NamedTuple):
    """The second model's metric minus the first's, with its 95% interval; None where undefined."""

    value: float | None
    interval: tuple[float, float] | None


def mcnemar_p_value(first_correct: Bools, second_correct: Bools) -> float:
    """Return the two-sided p-value of McNemar's exact test that two models are equally accurate.

    McNemar, Psychometrika 12 (1947), 153-157, with the binomial distribution. Both arguments are [n].
    """
    from scipy import stats

    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((second_correct & ~first_correct).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of several comparisons for the family-wise error rate; the order is kept.

    Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def paired_differences(
    first: Mapping[str, Statistic],
    second: Mapping[str, Statistic],
    num_examples: int,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = SEED,
) -> dict[str, Difference]:
    """Return the difference in each metric that both have, by a paired bootstrap.

    Hard examples are hard for both models and cancel out, so the intervals are narrower than two separate ones suggest.
    """
    names = [name for name in first if name in second]
    drawn = {(side, name): of[name] for side, of in enumerate((first, second)) for name in names}
    # One pass, so that both use the same resamples.
    resampled = resample({f"{side}{name}": s for (side, name), s in drawn.items()}, num_examples, num_resamples, seed)
    of_first, of_second = estimates(first, num_examples), estimates(second, num_examples)
    differences = {}
    for name in names:
        value = of_second[name] - of_first[name]
        interval = interval_around(value, resampled[f"1{name}"] - resampled[f"0{name}"], bounds=(-1.0, 1.0))
        differences[name] = Difference(None if np.isnan(value) else value, interval)
    return differences
