"""Limits on one request, shared by our client, the local server and the manifests for a cluster.

The number of examples per request is defined only in `k8s/serving/batching.config`, which TensorFlow Serving reads in
a cluster: the client splits by it, and the local server enforces it.
"""

import functools
import importlib.resources
import re

# The local server's default limit on a request body.
MAX_BODY_BYTES = 64 * 2**20
# Limit on an uncompressed body (ZLib::kMaxUncompressedBytes of TensorFlow Serving).
MAX_UNCOMPRESSED_BYTES = 100 * 2**20
# The client's own limit on a request, unless a single image is larger: well below both of the above.
CLIENT_REQUEST_BYTES = 8 * 2**20

_MAX_BATCH_SIZE = re.compile(r"^\s*max_batch_size\s*\{\s*value\s*:\s*(\d+)\s*\}", re.MULTILINE)
# The message of TensorFlow's batch scheduler (batching_util/shared_batch_scheduler.h).
_TOO_MANY = "Task size {size} is larger than maximum input batch size {limit}"
_TOLD_LIMIT = re.compile(_TOO_MANY.format(size=r"\d+", limit=r"(\d+)"))


@functools.cache
def cluster_batch_size() -> int:
    """Return the most examples in one request to a cluster: `max_batch_size` of `batching.config`."""
    text = (importlib.resources.files("k8s") / "serving" / "batching.config").read_text(encoding="utf-8")
    match = _MAX_BATCH_SIZE.search(text)
    assert match is not None, "k8s/serving/batching.config sets no max_batch_size"
    return int(match[1])


def too_many_examples(size: int, limit: int) -> str:
    """Return TensorFlow Serving's message for a request with more than `limit` examples."""
    return _TOO_MANY.format(size=size, limit=limit)


def find_told_limit(refusal: str) -> int | None:
    """Return the limit in a message of the form of `too_many_examples`, or None."""
    match = _TOLD_LIMIT.search(refusal)
    return None if match is None else int(match[1])
