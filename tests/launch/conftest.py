"""Starts TensorFlow as the commands do, and prepares the digits once for every test of `trainer launch`."""

import pathlib

import pytest

from trainer import tf_runtime

tf_runtime.configure(use_gpus=False)
tf_runtime.split_cpu(4)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The digits of scikit-learn as a prepared dataset."""
    from trainer.data.prepare import PrepareOptions, prepare_dataset

    out = tmp_path_factory.mktemp("datasets") / "digits"
    prepare_dataset("digits", out, options=PrepareOptions())
    return out
