"""Compiles a function with XLA, its programs kept in DIRECTORY, and prints what it gives; started by a test."""

import pathlib
import sys

from trainer.system import tf_runtime

tf_runtime.configure(use_gpus=False, xla_cache_dir=sys.argv[1])

import tensorflow as tf  # noqa: E402 (after `configure`)


@tf.function(jit_compile=True)
def compute(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.sin(x) @ tf.tanh(x))


print(float(compute(tf.ones([4, 4]))), len(list(pathlib.Path(sys.argv[1]).glob("*/*.pb"))))
