"""What the training step does by choice: accumulation, averages, synchronised statistics, dropout, compression."""

from typing import Any

import keras
import numpy as np
import pytest
from replicas import Training, build_small_model

pytestmark = pytest.mark.slow

SGD = ("optimizer.name=sgd", "optimizer.learning_rate=0.05")


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return Training(1).losses(5)


@pytest.mark.parametrize(
    ("num_replicas", "num_parts", "jit_compile"), [(1, 2, False), (1, 2, True), (2, 4, False), (1, 3, False)]
)
def test_a_batch_computed_in_parts_gives_the_same_losses(
    num_replicas: int, num_parts: int, jit_compile: bool, reference: np.ndarray
) -> None:
    """Three parts of 16 examples are of 6, 6 and 4, the last filled up."""
    overrides = (*SGD, f"train.accumulate_steps={num_parts}", "optimizer.clip_norm=100")
    training = Training(num_replicas, jit_compile=jit_compile, overrides=overrides)
    np.testing.assert_allclose(training.losses(5), reference, rtol=1e-5)


def test_parts_of_a_batch_move_the_statistics_one_after_the_other() -> None:
    training = Training(1, batch_norm_trains=True, overrides=(*SGD, "train.accumulate_steps=2"))
    (batch,) = training.batches(1)
    expected = build_small_model("float32", batch_norm_trains=True)
    images = batch.images.numpy().astype(np.float32)
    for part in (images[:8], images[8:]):
        expected(part, training=True)
    training.step(batch)
    for ours, keras_own in zip(training.state.statistics, _moving(expected), strict=True):
        np.testing.assert_allclose(ours.numpy(), keras_own.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("num_replicas", "num_parts", "jit_compile"), [(1, 1, False), (1, 2, True), (2, 1, False), (1, 1, True)]
)
def test_new_statistics_soon_forget_where_they_started(num_replicas: int, num_parts: int, jit_compile: bool) -> None:
    """Of a network that does not learn, so that Keras's own averages tell the statistics of each batch."""
    overrides = ("optimizer.name=sgd", "optimizer.learning_rate=1e-30", f"train.accumulate_steps={num_parts}")
    options: dict[str, Any] = {"batch_norm_trains": True, "jit_compile": jit_compile, "overrides": overrides}
    ours = Training(num_replicas, statistics_are_new=True, **options)
    keras_own = Training(num_replicas, **options)
    expected = before = [v.numpy() for v in keras_own.state.statistics]
    kept = 0.9**num_parts
    for n, (batch, same) in enumerate(zip(ours.batches(4), keras_own.batches(4), strict=True)):
        ours.step(batch)
        keras_own.step(same)
        after = [v.numpy() for v in keras_own.state.statistics]
        of_batch = [(new - kept * old) / (1 - kept) for new, old in zip(after, before, strict=True)]
        momentum = min(kept, (1 + n) / (10 + n))
        expected = [momentum * e + (1 - momentum) * b for e, b in zip(expected, of_batch, strict=True)]
        before = after
        for value, statistic in zip(expected, ours.state.statistics, strict=True):
            np.testing.assert_allclose(statistic.numpy(), value, rtol=1e-4, atol=1e-6)


def test_a_skipped_step_is_no_batch_of_the_statistics() -> None:
    plain, skipping = (Training(1, batch_norm_trains=True, statistics_are_new=True, overrides=SGD) for _ in range(2))
    (batch,) = plain.batches(1)
    (bad,) = plain.batches(1, weight_of={3: np.inf})
    plain.step(batch)
    assert int(skipping.step(bad).is_skipped) == 1
    skipping.step(batch)
    for once, again in zip(plain.state.statistics, skipping.state.statistics, strict=True):
        np.testing.assert_allclose(again.numpy(), once.numpy(), rtol=1e-5)


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_averages_are_those_of_weights_and_statistics_after_each_step(num_replicas: int) -> None:
    training = Training(num_replicas, batch_norm_trains=True, overrides=(*SGD, "train.ema_decay=0.5"))
    expected = [v.numpy() for v in training.state.averaged_variables]
    for n, batch in enumerate(training.batches(4)):
        training.step(batch)
        decay = min(0.5, (1 + n) / (10 + n))
        values = [v.numpy() for v in training.state.averaged_variables]
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, values, strict=True)]
    for average, value in zip(training.state.averages, expected, strict=True):
        np.testing.assert_allclose(average.numpy(), value, rtol=1e-5, atol=1e-7)
    paths = [v.path for v in training.state.averaged_variables]
    assert sum("moving" in path for path in paths) == 4


def test_a_skipped_step_leaves_the_averages_alone() -> None:
    training = Training(1, overrides=(*SGD, "train.ema_decay=0.5"))
    (batch,) = training.batches(1, weight_of={3: np.inf})
    before = [average.numpy() for average in training.state.averages]
    assert int(training.step(batch).is_skipped) == 1
    for old, new in zip(before, training.state.averages, strict=True):
        np.testing.assert_array_equal(new.numpy(), old)


def test_synchronised_statistics_make_two_replicas_equal_to_one() -> None:
    """A batch of 10 on two replicas also has fillings, which must not count."""
    options = {"batch_norm_trains": True, "is_synchronized": True, "global_batch_size": 10}
    one, two = Training(1, **options), Training(2, **options)
    np.testing.assert_allclose(two.losses(5), one.losses(5), rtol=1e-5)
    for ours, theirs in zip(two.state.statistics, one.state.statistics, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-6)


def test_synchronised_statistics_of_one_replica_are_those_of_keras() -> None:
    options = {"batch_norm_trains": True, "overrides": SGD}
    ours, keras_own = Training(1, is_synchronized=True, **options), Training(1, **options)
    np.testing.assert_allclose(ours.losses(5), keras_own.losses(5), rtol=1e-5)


def test_synchronised_statistics_under_xla_are_an_error() -> None:
    with pytest.raises(ValueError, match="XLA cannot"):
        Training(1, batch_norm_trains=True, is_synchronized=True, jit_compile=True)


@pytest.mark.parametrize(("num_replicas", "num_parts"), [(2, 1), (4, 2)])
def test_dropout_is_the_same_on_any_number_of_replicas(num_replicas: int, num_parts: int) -> None:
    one = Training(1, dropout=0.5)
    overrides = (*SGD, f"train.accumulate_steps={num_parts}")
    np.testing.assert_allclose(
        Training(num_replicas, dropout=0.5, overrides=overrides).losses(5), one.losses(5), rtol=1e-5
    )


def test_dropout_drops(reference: np.ndarray) -> None:
    assert not np.allclose(Training(1, dropout=0.5).losses(5), reference, rtol=1e-3)


def test_gradients_that_travel_in_float16_stay_close(reference: np.ndarray) -> None:
    losses = Training(2, overrides=(*SGD, "distribute.compression=float16")).losses(5)
    np.testing.assert_allclose(losses, reference, rtol=1e-3)
    assert not np.array_equal(losses, Training(2).losses(5)), "they must have been rounded"


def _moving(model: keras.Model) -> list[keras.Variable]:
    return [v for v in model.non_trainable_variables if "moving" in v.path]
