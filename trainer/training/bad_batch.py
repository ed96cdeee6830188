"""`RUN/bad_batch.npz`: the batch whose gradient was not finite when a run gave up, as the step got it.

With the weights of the step before, it reproduces the gradient.

step        of the run, from 1
examples    [b] int64, numbers in the training split; filenames [b] as in the source
labels      [b] int64, or [b, num_classes]; weights [b], of the examples in the loss
images      [b, size, size, 3] uint8 as the host gave them to the devices, in the size of that step, or the features
            that the run trains on
positions   [b] int64 in the stream of examples; randomness [b, k] float32, that of the random changes on the device
"""

import dataclasses
import io
import pathlib

import numpy as np
import tensorflow as tf

from trainer.data.dataset.records import Example
from trainer.data.input.pipeline import TrainingStream
from trainer.data.input.read_errors import as_data_errors
from trainer.distribute.topology import BatchDivision, Topology
from trainer.system import atomic


def save_bad_batch(path: pathlib.Path, stream: TrainingStream, *, step: int) -> None:
    """Read the whole global batch of `step` (from 1) again, and write it to `path`.

    `stream` must have the image size of the stage of that step.
    """
    whole = dataclasses.replace(
        stream,
        division=BatchDivision(stream.division.global_batch_size, 1),
        topology=Topology(strategy="single", device="cpu", num_local_replicas=1),
    )
    with as_data_errors():
        batch = next(iter(whole.dataset(step - 1, step)))
    examples = whole.draw(tf.constant(step - 1, tf.int64)).examples.numpy()
    names = [Example.from_payload(payload).filename for payload in stream.reader.read(examples)]
    content = io.BytesIO()
    np.savez_compressed(
        content,
        step=np.int64(step),
        examples=examples,
        filenames=np.array(names, np.str_),
        labels=batch.labels.numpy(),
        weights=batch.weights.numpy(),
        images=batch.images.numpy(),
        positions=batch.positions.numpy(),
        randomness=batch.randomness.numpy(),
    )
    atomic.write_bytes(path, content.getvalue())
