"""One unbroken run for the tests of elastic training; it also lets them build two hosts."""

import pathlib
import sys

import pytest

from tests.build_once import build_once

# `two_hosts` lies with the tests of the launcher.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "launchers"))


@pytest.fixture(scope="session")
def unbroken_losses(digits: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The loss of every step of a run on one replica."""
    from elastic_training import TrainingJob, losses_of

    def train(directory: pathlib.Path) -> None:
        job = TrainingJob(digits, directory / "run")
        assert job.wait() == 0, job.text()

    return losses_of(build_once(tmp_path_factory, "unbroken", train) / "run")
