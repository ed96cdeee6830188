"""The training step: the same on any number of replicas, compiled or not, and never a non-finite weight."""

import keras
import numpy as np
import pytest
from replicas import NUM_CLASSES, Training, build_small_model

pytestmark = pytest.mark.slow

_cached: dict[tuple[object, ...], np.ndarray] = {}


def losses_of_ten_steps(num_replicas: int, precision: str = "float32", jit_compile: bool = False) -> np.ndarray:
    key = (num_replicas, precision, jit_compile)
    if key not in _cached:
        _cached[key] = Training(num_replicas, precision, jit_compile).losses(10)
    return _cached[key]


@pytest.mark.parametrize("jit_compile", [False, True], ids=["xla off", "xla on"])
@pytest.mark.parametrize("num_replicas", [1, 2, 4])
def test_losses_do_not_depend_on_the_number_of_replicas_or_on_xla(num_replicas: int, jit_compile: bool) -> None:
    reference = losses_of_ten_steps(1)
    losses = losses_of_ten_steps(num_replicas, jit_compile=jit_compile)
    assert losses[0] != losses[-1], "the model must have moved"
    np.testing.assert_allclose(losses, reference, rtol=1e-4)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_stays_close_to_float32(precision: str) -> None:
    np.testing.assert_allclose(losses_of_ten_steps(2, precision), losses_of_ten_steps(1), rtol=2e-3)


def test_a_batch_that_does_not_divide_gives_the_same_losses() -> None:
    one, three = (Training(n, global_batch_size=10).losses(5) for n in (1, 3))
    np.testing.assert_allclose(three, one, rtol=1e-5)


def test_losses_equal_those_of_keras_with_the_same_optimizer() -> None:
    training = Training(1)
    reference = build_small_model("float32")
    optimizer = keras.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(0.05, decay_steps=training.num_train_steps), momentum=0.9
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    reference.compile(optimizer, loss, jit_compile=False)
    expected = [
        float(reference.train_on_batch(batch.images.numpy().astype(np.float32), batch.labels.numpy()))
        for batch in training.batches(5)
    ]
    np.testing.assert_allclose(training.losses(5), expected, rtol=1e-5)


@pytest.mark.parametrize("bad_replica", [0, 1, 2, 3])
def test_an_inf_in_any_one_replica_leaves_all_weights_unchanged_and_halves_the_scale(bad_replica: int) -> None:
    training = _training_on_four_float16_replicas()
    before, scale = training.weights(), float(training.state.loss_scale.scale.numpy())
    position_of_replica = bad_replica * 4
    (batch,) = training.batches(1, weight_of={position_of_replica: np.inf})
    num_skipped = int(training.state.num_skipped_steps.numpy())
    metrics = training.step(batch)
    assert int(metrics.is_skipped) == 1
    for old, new in zip(before, training.weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    assert float(training.state.loss_scale.scale.numpy()) == scale / 2
    assert int(training.state.num_skipped_steps.numpy()) == num_skipped + 1


def test_a_finite_step_after_a_skipped_one_moves_the_weights_on_every_replica_alike() -> None:
    training = _training_on_four_float16_replicas()
    before = training.weights()
    (batch,) = training.batches(1)
    assert int(training.step(batch).is_skipped) == 0
    assert any(not np.array_equal(old, new) for old, new in zip(before, training.weights(), strict=True))
    for variable in training.model.variables:
        first, *others = training.copies(variable)
        for other in others:
            np.testing.assert_array_equal(other, first)


def test_moving_statistics_are_averaged_over_the_replicas() -> None:
    training = Training(2, batch_norm_trains=True)
    training.losses(2)
    moving = [v for v in training.model.non_trainable_variables if "moving" in v.path]
    assert len(moving) == 4
    for variable in moving:
        first, second = training.copies(variable)
        np.testing.assert_array_equal(first, second)
        assert not np.allclose(first, 0) and not np.allclose(first, 1), "the statistics must have moved"


def test_accuracy_and_loss_of_a_step_are_those_of_the_real_examples_alone() -> None:
    training = Training(1, global_batch_size=8)
    (batch,) = training.batches(1, weight_of={7: 0.0, 6: 0.0})
    logits = training.model(batch.images.numpy().astype(np.float32), training=False).numpy()[:6]
    labels = batch.labels.numpy()[:6]
    metrics = training.step(batch)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert float(metrics.loss) == pytest.approx(-log_probabilities[np.arange(6), labels].mean(), rel=1e-5)
    assert float(metrics.accuracy) == pytest.approx((logits.argmax(axis=1) == labels).mean())
    assert logits.shape == (6, NUM_CLASSES)


_four_replicas: list[Training] = []


def _training_on_four_float16_replicas() -> Training:
    # Traced once: the tests that use it look at what one step changes.
    if not _four_replicas:
        _four_replicas.append(Training(4, "mixed_float16"))
    return _four_replicas[0]
