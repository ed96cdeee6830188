"""Whether two models differ, on the same examples."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from trainer.metrics.bootstrap import NUM_RESAMPLES, SEED, Statistic, estimates, interval_around, resample
from trainer.metrics.scores import Bools


class Difference(NamedTuple):
    """Of a metric, the second model's less the first's, with its 95% interval; None where it is not defined."""

    value: float | None
    interval: tuple[float, float] | None


def mcnemar_p_value(first_correct: Bools, second_correct: Bools) -> float:
    """How likely so uneven a split of the examples that only one of two equally good models gets right is.

    McNemar's exact test, two-sided: McNemar, Psychometrika 12 (1947), 153-157, with the binomial distribution. Both
    arguments are [n].
    """
    from scipy import stats

    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((second_correct & ~first_correct).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """The p-values of several comparisons, so that the chance of any false one stays what it says.

    Holm, Scandinavian Journal of Statistics 6 (1979), 65-70; in the order given.
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
    """The difference of every metric that both have, each resample taken of both models at once.

    What makes an example hard is the same for both and cancels out, so the interval is narrower than two intervals
    apart would suggest.
    """
    names = [name for name in first if name in second]
    drawn = {(side, name): of[name] for side, of in enumerate((first, second)) for name in names}
    # One pass, so that both see the same resamples.
    resampled = resample({f"{side}{name}": s for (side, name), s in drawn.items()}, num_examples, num_resamples, seed)
    of_first, of_second = estimates(first, num_examples), estimates(second, num_examples)
    differences = {}
    for name in names:
        value = of_second[name] - of_first[name]
        interval = interval_around(value, resampled[f"1{name}"] - resampled[f"0{name}"], bounds=(-1.0, 1.0))
        differences[name] = Difference(None if np.isnan(value) else value, interval)
    return differences
