"""The parts of a step, timed one by one."""

import itertools

import numpy as np
from replicas import Training

from benchmarks.step_times import StepParts, time_steps


def test_the_parts_and_the_rest_add_up_to_the_step_on_several_replicas() -> None:
    training = Training(2)
    times = time_steps(training.engine, training.step, iter(training.batches(3)), num_steps=2)
    parts = (times.input_secs, times.compute_secs, times.all_reduce_secs)
    assert all(part > 0 for part in parts)
    assert sum(parts) + times.rest_secs == times.step_secs
    assert int(training.state.global_step.numpy()) == 3, "the first step is made, and left out"


def test_computing_and_reducing_alone_change_nothing_and_give_what_a_step_reduces() -> None:
    training = Training(2)
    before = training.weights()
    batches = list(itertools.islice(training.batches(1), 1))
    parts = StepParts(training.engine, training.step)
    reduced = parts.reduce(parts.compute(batches[0]))
    for old, new in zip(before, training.weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    weighted_loss, _, weight = (float(x) for x in training.engine.local_values(reduced.sums)[0])
    np.testing.assert_allclose(weighted_loss / weight, float(training.step(batches[0]).loss), rtol=1e-6)
