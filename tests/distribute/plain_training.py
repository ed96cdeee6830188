"""The same training as a plain loop over whole batches, with a Keras optimizer and nothing of the trainer's step."""

import dataclasses
import functools

import keras
import numpy as np
import tensorflow as tf
from training_runs import (
    CLIP_NORM,
    LEARNING_RATE,
    MOMENTUM,
    NUM_STEPS,
    Outcome,
    TrainingRun,
    build_model,
    global_batches,
)


@functools.cache
def train_plainly(run: TrainingRun) -> Outcome:
    """`run` without XLA, parts and replicas; with moving statistics, those of the whole batch."""
    model = build_model(dataclasses.replace(run, batch_norm="frozen" if run.batch_norm == "frozen" else "per_replica"))
    optimizer = keras.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(LEARNING_RATE, decay_steps=NUM_STEPS),
        momentum=MOMENTUM,
        global_clipnorm=CLIP_NORM,
    )
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    @tf.function(reduce_retracing=True)
    def step(images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            losses = cross_entropy(labels, model(images, training=True))
            loss = tf.reduce_sum(weights * losses) / tf.reduce_sum(weights)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss, tf.linalg.global_norm(gradients)

    losses, norms = [], []
    for batch in global_batches(run):
        is_real = batch.weights > 0
        loss, norm = step(batch.images[is_real].astype(np.float32), batch.labels[is_real], batch.weights[is_real])
        losses.append(float(loss))
        norms.append(float(norm))
    variables = np.concatenate([v.numpy().reshape(-1) for v in model.variables])
    return Outcome(losses, norms, variables.tolist(), num_different_replicas=0, notes=[])
