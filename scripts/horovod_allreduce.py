"""Run one allreduce over all processes of a Horovod job; each prints its result as a line of JSON.

    horovodrun --gloo -np 2 python scripts/horovod_allreduce.py

Process r contributes [r, r + 1, r + 2, r + 3] as float32; the caller of the job checks the sum.
"""

import json

import horovod.tensorflow as hvd
import tensorflow as tf


def main() -> None:
    hvd.init()
    mine = tf.range(4, dtype=tf.float32) + float(hvd.rank())
    total = hvd.allreduce(mine, op=hvd.Sum)
    answer = {"rank": hvd.rank(), "size": hvd.size(), "dtype": total.dtype.name, "sum": total.numpy().tolist()}
    # One write, so that lines of two processes do not mix.
    print(json.dumps(answer) + "\n", end="", flush=True)


if __name__ == "__main__":
    main()
