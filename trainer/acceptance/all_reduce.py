"""The bandwidth of an all-reduce of every engine, against what the link between the GPUs allows.

`check_all_reduce` measures MirroredStrategy in its own process. For the strategies of several processes it starts the
workers of a job as `trainer launch` does, each of which runs this module: ... all_reduce STRATEGY DEVICE BYTES FILE.
"""

import json
import pathlib
import statistics
import sys
import time
from typing import Any, Final

from trainer.acceptance.engines import Several, why_not
from trainer.acceptance.result import Result, failed, not_run, passed
from trainer.acceptance.work import Work
from trainer.errors import TrainingError
from trainer.system import atomic
from trainer.system.child_python import python_command
from trainer.system.nvidia_smi import GpuLink, find_gpu_link

# What a reduction reaches of the link: NCCL's rings get 60 to 90% of NVLink; over PCIe, GPUs may share a switch.
LEAST_SHARE: Final = {"NVLink": 0.5, "PCIe": 0.25}
# Reductions in a call, one after the other, and the calls that are timed.
_NUM_CHAINED, _NUM_CALLS = 5, 5


def name_of(strategy: Several) -> str:
    """Return the name of the check."""
    return f"all-reduce-{strategy}"


def check_all_reduce(work: Work, strategy: Several) -> list[Result]:
    """Add up a tensor over all replicas, and compare the bandwidth with that of the link."""
    link = find_gpu_link() if work.device == "gpu" else None
    if reason := why_not(work, strategy):
        return [not_run(name_of(strategy), _expect(work, link), reason)]
    num_bytes = work.size.all_reduce_bytes
    if strategy == "mirrored":
        measured = _measure(strategy, work.device, work.num_replicas, num_bytes)
    else:
        measured = _measure_in_workers(work, strategy)
    return [judge(work, strategy, measured["secs"], is_right=measured["is_right"], link=link)]


def judge(work: Work, strategy: Several, secs: float, *, is_right: bool, link: GpuLink | None) -> Result:
    """Judge the seconds of one all-reduce; `link` is None on CPUs, or if the driver does not tell."""
    num_bytes, n = work.size.all_reduce_bytes, work.num_replicas
    # The "bus bandwidth" of nccl-tests: what passes the link of each replica in each direction.
    bandwidth = 2 * (n - 1) / n * num_bytes / secs
    seen = f"{num_bytes / 2**20:g} MiB over {n} replicas in {1000 * secs:.2f} ms: {bandwidth / 1e9:.2f} GB/s"
    figures: dict[str, Any] = {"bytes": num_bytes, "secs": secs, "bytes_per_sec": bandwidth}
    if link is not None:
        share = bandwidth / link.bytes_per_sec
        seen += f", {share:.0%} of {link.description}"
        figures |= {"link": link.kind, "link_bytes_per_sec": link.bytes_per_sec, "share": share}
    name, expected = name_of(strategy), _expect(work, link)
    if not is_right:
        return failed(name, expected, seen, "the sum is wrong", **figures)
    if link is not None and share < LEAST_SHARE[link.kind]:
        fix = "run it with NCCL_DEBUG=INFO in the environment: the log says which links NCCL takes"
        return failed(name, expected, seen, fix, **figures)
    return passed(name, expected, seen, **figures)


def _expect(work: Work, link: GpuLink | None) -> str:
    if link is not None:
        return f"the right sum, and at least {LEAST_SHARE[link.kind]:.0%} of {link.kind}"
    return "the right sum; no limit, since " + (
        "nothing but memory is between CPUs" if work.device == "cpu" else "the driver does not tell the speed of links"
    )


def _measure_in_workers(work: Work, strategy: Several) -> Any:
    from trainer.config.config import load_config
    from trainer.distribute.launchers.hosts import Host, assign_slots
    from trainer.launch.job import run_command_in_slots

    answer = work.results_dir / f"{strategy}.reduced"
    answer.unlink(missing_ok=True)
    config = load_config(flags={"distribute": {"strategy": strategy, "device": work.device}}).distribute
    facts = (strategy, work.device, str(work.size.all_reduce_bytes), str(answer))
    run_command_in_slots(
        assign_slots([Host(None, work.num_replicas)]),
        config,
        command=python_command("trainer.acceptance.all_reduce", *facts),
        log_dir=work.directory / "logs" / f"all-reduce-{strategy}",
    )
    if not answer.exists():
        raise TrainingError(f"the workers ended without an answer in {answer}")
    return json.loads(answer.read_text(encoding="utf-8"))


def _measure(strategy: str, device: str, num_replicas: int | None, num_bytes: int) -> dict[str, Any]:
    """Return the seconds of an all-reduce on the replicas of this process and all others of the job."""
    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=device == "gpu")

    import numpy as np
    import tensorflow as tf

    from trainer.config.config import load_config
    from trainer.launch import replicas

    number = {} if num_replicas is None else {"gpus" if device == "gpu" else "replicas": num_replicas}
    config = load_config(flags={"distribute": {"strategy": strategy, "device": device, **number}}).distribute
    topology = replicas.find_topology(config, [], None, print)
    engine = replicas.make_engine(topology, config, print)
    length = num_bytes // 4

    def on_replica(one: Any) -> Any:
        vector = tf.fill([length], one)
        for _ in range(_NUM_CHAINED):
            (vector,) = engine.all_reduce_sum([vector])
        return tf.gather(vector, [0, length // 2, length - 1])

    # Of an argument, and no constant: TensorFlow would add that up once, while it optimises the graph.
    reduce = tf.function(lambda one: engine.run(on_replica, one), autograph=False)
    one = tf.constant(1.0)

    def call() -> float:
        started = time.perf_counter()
        sums.extend(np.asarray(value) for value in engine.local_values(reduce(one)))
        return time.perf_counter() - started

    sums: list[Any] = []
    call()
    secs = statistics.median(call() for _ in range(_NUM_CALLS)) / _NUM_CHAINED
    expected = float(topology.num_replicas**_NUM_CHAINED)
    engine.barrier()
    is_right = all(bool((values == expected).all()) for values in sums)
    return {"secs": secs, "is_right": is_right, "is_chief": topology.is_chief}


def main(strategy: str, device: str, num_bytes: str, answer: str) -> None:
    """Measure as a worker of a job; the chief writes the answer."""
    measured = _measure(strategy, device, None, int(num_bytes))
    if measured["is_chief"]:
        atomic.write_json(pathlib.Path(answer), measured)


if __name__ == "__main__":
    main(*sys.argv[1:])
