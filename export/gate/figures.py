"""Compute and judge the figures of the parity gate: arithmetic on probabilities only."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from export.files.formats import MIN_NUM_OF_CLASS, Budget
from export.files.parity import ClassAgreement, Figures
from export.gate.decisions import Bools, Decisions, Probabilities, are_clear, are_same, decide
from export.gate.information import are_alike, find_uninformative
from trainer.metrics.predictions import wilson_interval

# Tolerance for rounding of fractions, far below one image.
_SLACK = 1e-9


def compare_probabilities(
    expected: Probabilities,
    answers: Probabilities,
    class_ids: npt.NDArray[np.int64],
    budget: Budget,
    thresholds: Sequence[float] | None = None,
) -> Figures:
    """Compare `answers` with `expected`, both [n, num_classes], n at least 1.

    `class_ids` are the true classes, [n]; for a multi-label model, which has `thresholds`, multi-hot [n, num_classes].
    """
    finite = np.isfinite(answers).all(axis=-1) & np.isfinite(expected).all(axis=-1)
    predicted, wanted = decide(answers, thresholds), decide(expected, thresholds)
    # A non-finite answer is no prediction, whatever argmax makes of it.
    agrees = are_same(predicted, wanted) & finite
    differences = np.abs(answers.astype(np.float64) - expected)
    all_finite = bool(finite.all())
    clear, set_aside = _count_disagreements(expected, answers, agrees, budget, thresholds)
    num_correct = int((are_same(predicted, class_ids) & finite).sum())
    return Figures(
        num_images=len(expected),
        agreement=float(agrees.mean()),
        num_clear_disagreements=clear,
        num_set_aside=set_aside,
        max_difference=float(differences.max()) if all_finite else None,
        mean_difference=float(differences.mean()) if all_finite else None,
        accuracy=num_correct / len(expected),
        accuracy_interval=wilson_interval(num_correct, len(expected)),
        reference_accuracy=float(are_same(wanted, class_ids).mean()),
        num_not_finite=int((~finite).sum()),
        num_uninformative=int(find_uninformative(expected, answers, thresholds).sum()) if all_finite else 0,
        worst_class=_find_worst_class(wanted, predicted, expected.shape[-1]),
        model_answers_alike=all_finite and len(expected) > 1 and are_alike(expected),
        commonest_share=_commonest_share(class_ids),
    )


def find_failure(figures: Figures, budget: Budget, class_names: Sequence[str] | None = None) -> str | None:
    """Return what exceeds `budget`, with the figure and the limit, or None."""
    if figures.num_not_finite or figures.max_difference is None:
        return f"NaN or infinity in the answers to {figures.num_not_finite} of {figures.num_images} images"
    if budget.max_difference is not None and figures.max_difference > budget.max_difference:
        return (
            f"a probability differs by {figures.max_difference:.2g} from the model's, "
            f"where {budget.max_difference:.0e} is allowed"
        )
    if figures.num_clear_disagreements:
        return f"{figures.num_clear_disagreements} of {figures.num_images} images get another class by a clear margin"
    failure = _find_many_set_aside(figures, budget)
    if failure:
        return failure
    drop = figures.reference_accuracy - figures.accuracy
    if budget.max_accuracy_drop is not None and drop > budget.max_accuracy_drop + _SLACK:
        return (
            f"accuracy is {100 * drop:.2f} points lower than the model's ({figures.accuracy:.4f} against "
            f"{figures.reference_accuracy:.4f}), where {100 * budget.max_accuracy_drop:.1f} points are allowed"
        )
    return _find_disagreement(figures, budget, class_names) or _find_lost_information(figures, budget)


def _find_disagreement(figures: Figures, budget: Budget, class_names: Sequence[str] | None) -> str | None:
    weak = ", and the model itself is too weak to be judged by accuracy" if figures.is_too_weak else ""
    if budget.min_agreement is not None:
        num_others = round((1 - figures.agreement) * figures.num_images)
        # One is always allowed: among few images a single one exceeds the share.
        if num_others > max(1, int((1 - budget.min_agreement) * figures.num_images + _SLACK)):
            return (
                f"it agrees with the model on {100 * figures.agreement:.1f}% of the images, where "
                f"{100 * budget.min_agreement:g}% is required{weak}"
            )
    worst = figures.worst_class
    if worst and budget.min_class_agreement is not None and worst.agreement < budget.min_class_agreement - _SLACK:
        name = repr(class_names[worst.class_id]) if class_names else worst.class_id
        return (
            f"it agrees with the model on {100 * worst.agreement:.0f}% of the {worst.num_images} images of class "
            f"{name}, where {100 * budget.min_class_agreement:g}% is required of every class"
        )
    return None


def _find_lost_information(figures: Figures, budget: Budget) -> str | None:
    if budget.max_share_uninformative is None:
        return None
    if figures.num_uninformative <= int(budget.max_share_uninformative * figures.num_images + _SLACK):
        return None
    return (
        f"the answers to {figures.num_uninformative} of {figures.num_images} images are uninformative (all zero, "
        f"constant or saturated), where {100 * budget.max_share_uninformative:g}% are allowed"
    )


def _find_worst_class(wanted: Decisions, predicted: Decisions, num_classes: int) -> ClassAgreement | None:
    """Return the class on which `predicted`, the artifact's decisions, agree least with `wanted`, the model's."""
    if wanted.ndim == 2:
        counts, kept = wanted.sum(axis=0), (wanted & predicted).sum(axis=0)
    else:
        counts = np.bincount(wanted, minlength=num_classes)
        kept = np.bincount(wanted[wanted == predicted], minlength=num_classes)
    judged = np.flatnonzero(counts >= MIN_NUM_OF_CLASS)
    if not judged.size:
        return None
    worst = int(judged[np.argmin(kept[judged] / counts[judged])])
    return ClassAgreement(class_id=worst, num_images=int(counts[worst]), agreement=float(kept[worst] / counts[worst]))


def _commonest_share(class_ids: npt.NDArray[np.int64]) -> float:
    _, counts = np.unique(class_ids, axis=0, return_counts=True)
    return float(counts.max() / len(class_ids))


def _find_many_set_aside(figures: Figures, budget: Budget) -> str | None:
    if figures.num_set_aside is None or budget.max_share_set_aside is None:
        return None
    # One is always allowed: among fewer than 1,000 images a single one exceeds the share.
    allowed = max(1, int(budget.max_share_set_aside * figures.num_images))
    if figures.num_set_aside <= allowed:
        return None
    return (
        f"{figures.num_set_aside} of {figures.num_images} images get another class by a margin too thin to judge, "
        f"where {allowed} may be set aside"
    )


def _count_disagreements(
    expected: Probabilities,
    answers: Probabilities,
    agrees: Bools,
    budget: Budget,
    thresholds: Sequence[float] | None,
) -> tuple[int | None, int | None]:
    """Return the numbers of disagreements by a clear margin and by less."""
    if budget.max_difference is None:
        return None, None
    clear = are_clear(expected, answers, thresholds, budget.max_difference)
    return int((clear & ~agrees).sum()), int((~clear & ~agrees).sum())
