"""Which steps end an epoch: the same as counting examples one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.config import Config, load_config
from trainer.data.sampling.epochs import Epochs
from trainer.errors import ConfigError


def config_of(epochs: float, batch_size: int, last_batch: str = "mask") -> Config:
    settings = {"train": {"epochs": epochs, "global_batch_size": batch_size}, "data": {"last_batch": last_batch}}
    return load_config(flags=settings)


def ends_of(epochs: Epochs) -> list[int]:
    return [step for step in range(1, epochs.num_train_steps + 1) if epochs.ends_with(step)]


@given(
    num_examples=st.integers(1, 400),
    batch_size=st.integers(1, 500),
    num_epochs=st.integers(1, 30),
    last_batch=st.sampled_from(["mask", "drop"]),
)
def test_an_epoch_ends_with_the_step_that_takes_its_last_example(
    num_examples: int, batch_size: int, num_epochs: int, last_batch: str
) -> None:
    try:
        epochs = Epochs.of(config_of(float(num_epochs), batch_size, last_batch), num_examples)
    except ConfigError:
        assert num_examples * num_epochs < batch_size
        return
    # The step of each position, and of the last position of every epoch.
    step_of = [position // batch_size + 1 for position in range(num_examples * num_epochs)]
    brute = [step_of[e * num_examples - 1] for e in range(1, num_epochs + 1)]
    assert ends_of(epochs)[:-1] == sorted({step for step in brute if step <= epochs.num_train_steps})[:-1]
    assert all(epochs.last_step_of(e) == min(step, epochs.num_train_steps) for e, step in enumerate(brute, start=1))
    assert epochs.num_ends == len({*ends_of(epochs), epochs.num_train_steps})
    if last_batch == "mask":
        assert epochs.done_after(epochs.num_train_steps) == num_epochs
        assert ends_of(epochs)[-1] == epochs.num_train_steps == step_of[-1]


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "num_epochs", "ends"),
    [
        # Once each, though an epoch is 5.6 steps long.
        (359, 64, 10, [6, 12, 17, 23, 29, 34, 40, 45, 51, 57]),
        # 33 / 2.2 is 14.999999999999998 in floating point.
        (22, 10, 15, [3, 5, 7, 9, 11, 14, 16, 18, 20, 22, 25, 27, 29, 31, 33]),
        # A batch of many epochs ends some with every step.
        (3, 10, 10, [1, 2, 3]),
    ],
)
def test_the_ends_of_epochs_are_exact(num_examples: int, batch_size: int, num_epochs: int, ends: list[int]) -> None:
    epochs = Epochs.of(config_of(float(num_epochs), batch_size), num_examples)
    assert ends_of(epochs) == ends
    assert epochs.num_ends == len(ends)


def test_the_end_of_an_epoch_is_exact_where_a_float_has_no_more_digits() -> None:
    epochs = Epochs.of(config_of(2.0, 3), num_examples=3 * 10**15 + 1)
    assert [epochs.ends_with(10**15 + i) for i in (0, 1, 2)] == [False, True, False]


@pytest.mark.parametrize(
    ("asked", "num_examples", "expected"), [(0.29, 100, 29), (1.1, 10, 11), (0.07, 100, 7), (2.3, 10**6, 2300000)]
)
def test_epochs_are_counted_as_they_are_written(asked: float, num_examples: int, expected: int) -> None:
    assert Epochs.of(config_of(asked, 8), num_examples).num_positions == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epochs=0.001", "train.epochs is 0.001, less than one of the 100 training images"),
        ("train.epochs=1e300", "train.epochs in the configuration is 1e\\+300: input should be less"),
        ("train.epochs=.inf", "train.epochs in the configuration is inf: input should be a finite number"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate in the configuration is nan"),
    ],
)
def test_what_cannot_be_counted_is_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Epochs.of(load_config(overrides=[setting]), 100)


def test_more_positions_than_a_device_counts_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train.epochs is 2.14748e\+09, too often to count each"):
        Epochs.of(load_config(overrides=["train.epochs=2147483647"]), 2**32)
