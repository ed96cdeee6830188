"""Tell an error for lack of device memory from other errors of TensorFlow."""

import tensorflow as tf

# XLA and cuDNN report it as an internal or unknown error on some paths.
_PHRASES = ("out of memory", "resource_exhausted", "cuda_error_out_of_memory", "cudnn_status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if `error` says that an allocation failed on a device."""
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return True
    text = str(error).lower()
    return isinstance(error, tf.errors.OpError) and any(phrase in text for phrase in _PHRASES)
