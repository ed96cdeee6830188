"""Starts TensorFlow as the commands do, before a test module imports it."""

from trainer import tf_runtime

tf_runtime.configure(use_gpus=False)
tf_runtime.split_cpu(4)
