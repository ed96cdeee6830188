"""Measuring and solving for many classes take about what their logits and their head take, and not many times that."""

import tracemalloc

import numpy as np
import pytest

from trainer.errors import UsageError
from trainer.features.ridge_path import needed_bytes as ridge_bytes
from trainer.features.ridge_path import solve_path
from trainer.metrics import scores
from trainer.metrics.scores import needed_bytes
from trainer.metrics.summary import summarize, tune
from trainer.system import memory
from trainer.system.memory import check_fits

pytestmark = pytest.mark.slow

NUM_CLASSES = 10_000


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # As many blocks as a large split has: a test of a few hundred MB would be slow.
    monkeypatch.setattr(scores, "BLOCK_VALUES", 2**16)
    monkeypatch.setattr("trainer.features.ridge_path._BLOCK_VALUES", 2**16)


def peak_bytes(work) -> int:
    """The most that is allocated at a time within `work`, beside what was there before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_measuring_takes_less_than_the_logits_once_more(task):
    rng = np.random.default_rng(0)
    num_examples, num_classes = (2000, 2500) if task == "single_label" else (50_000, 100)
    logits = rng.normal(size=[num_examples, num_classes]).astype(np.float32)
    if task == "single_label":
        labels = rng.integers(num_classes, size=num_examples)
        logits[np.arange(num_examples), labels] += 3
    else:
        labels = (rng.random(logits.shape) < 0.02).astype(np.uint8)
    class_names, options = [f"class {i}" for i in range(num_classes)], {"task": task, "global_step": 1}
    evaluations = []

    def evaluate() -> None:
        tuning = tune(labels, logits, **options)
        evaluations.append(
            summarize(labels, logits, class_names, split="test", tuning=tuning, num_resamples=3, **options)
        )

    # Several labels: what is predicted, and a look at what is a label, are a byte each beside the four of a logit.
    assert peak_bytes(evaluate) < logits.nbytes * (0.8 if task == "multi_label" else 0.6)
    assert evaluations[0].confusion_matrix is None


def test_the_closed_form_keeps_neither_images_times_classes_nor_strengths_times_that():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=[1000, 16]).astype(np.float32), rng.integers(NUM_CLASSES, size=1000)
    labels[0] = NUM_CLASSES - 1
    peak = peak_bytes(lambda: solve_path(features, labels, np.ones(1000, np.float32), (features, labels), [1e-3, 1.0]))
    of_one_strength = 8 * len(labels) * NUM_CLASSES
    assert peak < of_one_strength / 5
    # What is asked for before the start is about what it comes to, whatever the blocks.
    assert 0.3 < ridge_bytes(1000, 16, NUM_CLASSES) / peak < 3


def test_what_does_not_fit_is_refused_with_the_number(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 8 * 2**30)
    check_fits(needed_bytes(50_000, 10_000, has_several_labels=False), "evaluating", "use less")
    with pytest.raises(
        UsageError, match=r"evaluating takes about 37\.\d GiB of memory, and 8\.0 GiB are free; use less"
    ):
        check_fits(needed_bytes(1_000_000, 10_000, has_several_labels=False), "evaluating", "use less")
