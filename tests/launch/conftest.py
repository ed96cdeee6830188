"""Prepares the digits once for every test of `trainer launch`."""

import pathlib

import pytest


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The digits of scikit-learn as a prepared dataset."""
    from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset

    out = tmp_path_factory.mktemp("datasets") / "digits"
    prepare_dataset("digits", out, options=PrepareOptions())
    return out
