"""One allreduce over every process of a Horovod job; each prints what it got as one line of JSON.

    horovodrun --gloo -np 2 python scripts/horovod_allreduce.py

Process r puts in [r, r + 1, r + 2, r + 3] as float32. Who started the job knows what the sum has to be.
"""

import json

import horovod.tensorflow as hvd
import tensorflow as tf


def main() -> None:
    hvd.init()
    mine = tf.range(4, dtype=tf.float32) + float(hvd.rank())
    total = hvd.allreduce(mine, op=hvd.Sum)
    answer = {"rank": hvd.rank(), "size": hvd.size(), "dtype": total.dtype.name, "sum": total.numpy().tolist()}
    # One write, so that the lines of two processes cannot run into each other.
    print(json.dumps(answer) + "\n", end="", flush=True)


if __name__ == "__main__":
    main()
