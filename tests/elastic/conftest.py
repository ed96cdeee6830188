"""Prepares the digits once for the tests of elastic training, and lets them build two hosts."""

import pathlib
import sys

import pytest

# `two_hosts` lies with the tests of the launcher.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "launchers"))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The digits of scikit-learn as a prepared dataset."""
    from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset

    out = tmp_path_factory.mktemp("datasets") / "digits"
    prepare_dataset("digits", out, options=PrepareOptions())
    return out


@pytest.fixture(scope="session")
def unbroken_losses(digits: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The loss of every step of a run on one replica."""
    from elastic_training import TrainingJob

    job = TrainingJob(digits, tmp_path_factory.mktemp("unbroken") / "run")
    assert job.wait() == 0, job.text()
    return job.losses()
