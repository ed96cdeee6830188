"""What every test has in common: a quiet TensorFlow, and no thread pool larger than its share of the machine."""

import os

# Before the first import of TensorFlow, here and in every process that a test starts.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
