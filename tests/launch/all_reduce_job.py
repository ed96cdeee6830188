"""A job whose workers only add up numbers: python all_reduce_job.py LOG_DIR horovod|multiworker NUM_WORKERS NUM_STEPS.

It is started and watched as `trainer launch` does it, without a model. Its workers run this file again as:
python all_reduce_job.py worker STRATEGY NUM_STEPS.
"""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

from trainer.distribute.launchers.environments import horovod_rendezvous, multiworker_environments
from trainer.distribute.launchers.external import find_external_worker
from trainer.distribute.launchers.hosts import Host, WorkerSlot, assign_slots
from trainer.distribute.launchers.supervisor import Supervisor, SupervisorOptions
from trainer.distribute.launchers.worker import Ready
from trainer.errors import TrainerError

Environments = Callable[[Sequence[Ready]], list[dict[str, str]]]


def work(strategy: str, num_steps: int) -> None:
    worker = find_external_worker()
    assert worker is not None
    print(f"worker {worker.worker_index} starts", flush=True)
    add_up = horovod_sum() if strategy == "horovod" else multiworker_sum()
    for step in range(num_steps):
        assert add_up(1.0) == worker.num_workers
        if step == 0:
            print(f"worker {worker.worker_index} adds up", flush=True)
    print(f"worker {worker.worker_index} ends", flush=True)


def horovod_sum() -> Callable[[float], float]:
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    return lambda value: float(hvd.allreduce(tf.constant(value), op=hvd.Sum))


def multiworker_sum() -> Callable[[float], float]:
    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=False)
    from trainer.distribute.multiworker import find_topology, make_engine

    engine = make_engine(find_topology("cpu"))
    return lambda value: float(sum(engine.gather_from_workers([value])).item())


@contextlib.contextmanager
def rendezvous_of(strategy: str, slots: list[WorkerSlot]) -> Iterator[Environments]:
    if strategy == "multiworker":
        yield lambda ready: multiworker_environments(slots, ready)
        return
    with horovod_rendezvous() as rendezvous:
        yield lambda ready: rendezvous.environments(slots, ready)


def launch(log_dir: str, strategy: str, num_workers: int, num_steps: int) -> int:
    slots = assign_slots([Host(None, num_workers)])
    supervisor = Supervisor(
        slots,
        log_dir=pathlib.Path(log_dir),
        show=lambda line: print(line, flush=True),
        options=SupervisorOptions(start_timeout_secs=600),
    )
    try:
        with rendezvous_of(strategy, slots) as environments:
            supervisor.run([sys.executable, __file__, "worker", strategy, str(num_steps)], environments)
    except TrainerError as e:
        print(f"error: {e}", flush=True)
        return e.exit_status
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        work(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(launch(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
