"""What every test has in common: a quiet TensorFlow, and no thread pool larger than its share of the machine."""

import os
import pathlib

import pytest

from tests.build_once import build_once
from tests.complete import IS_COMPLETE
from trainer.system import tf_runtime

pytest_plugins = ["tests.skips", "tests.longest_first"]

# Before the first import of TensorFlow, here and in every process that a test starts.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
if not IS_COMPLETE:
    # XLA's own passes stay; what LLVM makes of their result takes half of the time of the tests that compile.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# The logical devices of a process are fixed by its first operation, whichever test that is in: tests of several
# replicas share four of them.
tf_runtime.configure(use_gpus=False)
tf_runtime.split_cpu(4)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The digits of scikit-learn as a prepared dataset."""
    from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset

    def prepare(directory: pathlib.Path) -> None:
        prepare_dataset("digits", directory / "digits", options=PrepareOptions())

    return build_once(tmp_path_factory, "datasets", prepare) / "digits"
