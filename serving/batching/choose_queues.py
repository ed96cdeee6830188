"""Choose the queues for the requests of a server from the options of its command."""

import dataclasses
import importlib.resources
import pathlib
from typing import Final

from serving.batching.observer import BatchObserver, NoObserver
from serving.batching.parameters import BatchingParameters, parse_parameters, read_parameters
from serving.batching.request_queue import MakeQueue, RequestQueue, Run
from serving.batching.requests import one_by_one
from serving.batching.scheduler import BatchScheduler
from serving.protocol.limits import cluster_batch_size
from trainer.errors import UsageError

UNLIMITED: Final = 0
_UNBATCHED_THREADS: Final = 4
_NO_OBSERVER: Final = NoObserver()


def choose_queues(
    *,
    is_export: bool,
    batching: bool = True,
    parameters_file: pathlib.Path | None = None,
    threads: int | None = None,
    max_batch_size: int | None = None,
    observer: BatchObserver = _NO_OBSERVER,
) -> MakeQueue:
    """Return what makes the queues of signatures; each model has threads of its own for all of them.

    Args:
        is_export: an export is batched as in the cluster of `trainer manifests`, another model where a file says how.
        batching: False runs every request by itself.
        parameters_file: TensorFlow Serving's batching parameters.
        threads: how many runs go on at the same time, in place of what the parameters say.
        max_batch_size: the most examples in a request, in place of what the parameters say; `UNLIMITED` only where
            nothing is batched.
        observer: told of requests and batches, where there are batches.

    Raises:
        UsageError: the file or the options cannot be used.
    """
    if parameters_file is not None and not batching:
        raise UsageError(
            f"--no-batching was given together with --batching-parameters-file {parameters_file}; give only one of both"
        )
    if not batching or not (is_export or parameters_file is not None):
        if max_batch_size is None:
            max_batch_size = cluster_batch_size() if is_export else UNLIMITED
        return one_by_one(num_threads=threads or _UNBATCHED_THREADS, max_batch_size=max_batch_size or None)
    if max_batch_size == UNLIMITED:
        raise UsageError("--max-batch-size 0 sets no limit, and a batch needs one; add --no-batching")
    parameters = cluster_parameters() if parameters_file is None else read_parameters(parameters_file)
    changed = dataclasses.replace(
        parameters,
        num_batch_threads=threads or parameters.num_batch_threads,
        max_batch_size=max_batch_size or parameters.max_batch_size,
    )
    changed.check("--threads and --max-batch-size together with the batching parameters")
    schedulers: dict[str, BatchScheduler] = {}

    def make(run: Run, model: str, signature: str) -> RequestQueue:
        scheduler = schedulers.setdefault(model, BatchScheduler(changed, observer=observer))
        return scheduler.add_queue(run, f"{model}-{signature}")

    return make


def cluster_parameters() -> BatchingParameters:
    """Return the parameters of TensorFlow Serving in the cluster of `trainer manifests`."""
    file = importlib.resources.files("k8s") / "serving" / "batching.config"
    return parse_parameters(file.read_text(encoding="utf-8"), origin="k8s/serving/batching.config")
