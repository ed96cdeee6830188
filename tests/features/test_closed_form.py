"""The head in closed form: scikit-learn's ridge regression for every strength, and a run like any other."""

import json

import numpy as np
import pytest
from feature_runs import make_config
from sklearn.linear_model import Ridge

from trainer.data.dataset.storage import parse_path
from trainer.distribute.mirrored import make_engine
from trainer.distribute.topology import Topology
from trainer.errors import ConfigError
from trainer.evaluation.evaluate_run import evaluate_run
from trainer.features.ridge_path import solve_path
from trainer.plan.plan import make_plan
from trainer.run.run_dir import RunDir

ONE_CPU = Topology(strategy="single", device="cpu", num_local_replicas=1)
NUM_CLASSES = 3


@pytest.mark.parametrize("num_examples", [60, 12], ids=["more images than features", "fewer"])
@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
def test_a_strength_gives_the_weights_of_ridge_regression(num_examples: int, strength: float) -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(2.0, 1.0, (num_examples, 20)).astype(np.float32)
    labels = generator.integers(0, NUM_CLASSES, num_examples)
    labels[:NUM_CLASSES] = range(NUM_CLASSES)
    weights = generator.uniform(0.5, 3.0, num_examples).astype(np.float32)
    solution = solve_path(features, labels, weights, (features, labels), [strength])
    share = weights.astype(np.float64) / weights.sum()
    covariance = np.cov(features.T, aweights=share, ddof=0)
    expected = Ridge(alpha=strength * np.trace(covariance) / 20, solver="svd")
    expected.fit(features.astype(np.float64), np.eye(NUM_CLASSES)[labels], sample_weight=share)
    # The outputs are scaled to be logits, which changes no decision.
    scale = np.linalg.norm(solution.kernel) / np.linalg.norm(expected.coef_)
    assert 1.0 <= scale < 101
    np.testing.assert_allclose(solution.kernel / scale, expected.coef_.T, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(solution.bias / scale, expected.intercept_, rtol=1e-3, atol=1e-4)
    predicted = expected.predict(features.astype(np.float64)).argmax(axis=1)
    assert solution.accuracies == [pytest.approx((predicted == labels).mean())]


def test_the_strength_that_is_best_on_the_validation_images_is_kept() -> None:
    generator = np.random.default_rng(1)
    centres = generator.normal(0.0, 1.0, (NUM_CLASSES, 40))

    def draw(num: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(num) % NUM_CLASSES
        return (centres[labels] + generator.normal(0.0, 3.0, (num, 40))).astype(np.float32), labels

    features, labels = draw(45)
    strengths = [1e-6, 1e-2, 1.0, 30.0]
    solution = solve_path(features, labels, np.ones(45, np.float32), draw(600), strengths)
    best = max(solution.accuracies)
    assert best > min(solution.accuracies), "the strengths must matter"
    assert solution.strength == max(s for s, a in zip(strengths, solution.accuracies, strict=True) if a == best)


def test_a_run_in_closed_form_is_one_step_that_evaluates_like_any_other(run_again) -> None:
    run = run_again("train.solver=ridge", "model.dropout=0.0")
    assert run.plan.schedule.num_train_steps == 1
    (accuracy,) = run.metrics("accuracy", "validation")
    assert accuracy > 0.6, "of ten classes"
    evaluation = evaluate_run(RunDir(run.path), "validation", make_engine(ONE_CPU))
    assert evaluation.accuracy == pytest.approx(accuracy)
    path = json.loads((run.path / "ridge_path.json").read_text())["path"]
    assert len(path) == 20
    assert max(entry["validation_accuracy"] for entry in path) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        (["model.dropout=0.5"], "more than one dense layer"),
        (["model.dropout=0.0", "model.trainable=all"], "every layer is trained"),
        (["model.dropout=0.0", "augment.preset=light"], "changed at random"),
        (["model.dropout=0.0", "data.sampling=class_balanced"], r"data\.sampling is class_balanced"),
        (["model.dropout=0.0", "train.label_smoothing=0.1"], r"train\.label_smoothing is 0\.1"),
        (["model.dropout=0.0", "train.class_weights=balanced"], r"train\.class_weights is balanced"),
        (["model.dropout=0.0", "features.cache=off"], r"features\.cache is off"),
    ],
)
def test_what_has_no_closed_form_is_an_error(few_digits, settings: list[str], answer: str) -> None:
    config = make_config(few_digits, "train.solver=ridge", *settings)
    with pytest.raises(ConfigError, match=answer) as error:
        make_plan(config, parse_path(str(few_digits)), ONE_CPU, [])
    assert "train.solver is ridge" in str(error.value)
