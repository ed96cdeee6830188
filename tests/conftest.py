"""What every test has in common: a quiet TensorFlow, and no thread pool larger than its share of the machine."""

import os

from trainer.system import tf_runtime

pytest_plugins = ["tests.skips"]

# Before the first import of TensorFlow, here and in every process that a test starts.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

# The logical devices of a process are fixed by its first operation, whichever test that is in: tests of several
# replicas share four of them.
tf_runtime.configure(use_gpus=False)
tf_runtime.split_cpu(4)
