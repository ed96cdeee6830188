"""A small dataset, and runs on it that are the same but for their settings."""

import functools
import pathlib

import pytest
from feature_runs import FinishedRun, finish_run

from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A hundred and sixty scanned digits as a prepared dataset, in a folder of its own."""
    out = tmp_path_factory.mktemp("features") / "digits"
    prepare_dataset("digits", out, options=PrepareOptions(per_class=16))
    return out


@pytest.fixture(scope="session")
def plain_run(few_digits: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Trained through the whole network, nothing kept."""
    return finish_run(few_digits, tmp_path_factory.mktemp("plain") / "run", "features.cache=off")


@pytest.fixture(scope="session")
def cached_run(few_digits: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The same on features that TensorFlow has computed."""
    return finish_run(few_digits, tmp_path_factory.mktemp("cached") / "run", "features.runtime=tensorflow")


@pytest.fixture
def run_again(few_digits: pathlib.Path, tmp_path: pathlib.Path) -> functools.partial[FinishedRun]:
    """Makes a run in a new directory: call it with settings."""
    return functools.partial(finish_run, few_digits, tmp_path / "run")
