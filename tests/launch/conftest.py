"""One run that those of several replicas are compared with."""

import pathlib

import pytest
from launching import launch, metrics

from tests.build_once import build_once


@pytest.fixture(scope="session")
def losses_alone(digits: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one epoch of `launching.QUICK` on one replica."""

    def train(directory: pathlib.Path) -> None:
        alone = launch(digits, directory / "run", "--set=train.epochs=1")
        output, _ = alone.communicate(timeout=600)
        assert alone.returncode == 0, output

    return [m["loss"] for m in metrics(build_once(tmp_path_factory, "trained_alone", train) / "run")]
