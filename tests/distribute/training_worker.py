"""One process of a job of the tests: python training_worker.py STRATEGY NUM_LOCAL_REPLICAS OUT_DIR DATASET.

The environment variable RUNS is a JSON list of `TrainingRun`s; the outcomes of worker i are written to
OUT_DIR/worker-i.json.
"""

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

from compiled_clusters import count_executions

from trainer.acceptance.compiled import compiled_convolutions, start_dump
from trainer.system import tf_runtime


def make_engine(strategy: str, num_local_replicas: int) -> tuple[Any, str]:
    """The engine, and what it communicates over."""
    from trainer.distribute import horovod as hvd
    from trainer.distribute import mirrored, multiworker
    from trainer.distribute.topology import Topology

    if strategy == "horovod":
        import horovod.tensorflow as horovod

        topology = hvd.start("cpu")
        return hvd.HorovodEngine(topology), "mpi" if horovod.mpi_enabled() else "gloo"
    if strategy == "multiworker":
        return multiworker.make_engine(multiworker.find_topology("cpu")), "grpc"
    topology = Topology(
        strategy="single" if num_local_replicas == 1 else "mirrored",
        device="cpu",
        num_local_replicas=num_local_replicas,
    )
    return mirrored.make_engine(topology), "memory"


def main(strategy: str, num_local_replicas: int, out_dir: pathlib.Path, dataset_dir: pathlib.Path) -> None:
    work_dir = out_dir / f"process-{os.getpid()}"
    start_dump(work_dir / "hlo")
    tf_runtime.configure(use_gpus=False)
    from training_runs import TrainingRun, make_evaluator, open_test_split, train

    engine, transport = make_engine(strategy, num_local_replicas)
    seen: set[pathlib.Path] = set()
    outcomes = []
    with open_test_split(dataset_dir) as reader:
        for i, settings in enumerate(json.loads(os.environ["RUNS"])):
            run = TrainingRun(**settings)
            # With the server of a worker of tf.distribute in its process, the profiler now and then corrupts the heap.
            profile_dir = None if strategy == "multiworker" or run.room is not None else work_dir / f"profile-{i}"
            model, outcome = train(run, engine, profile_dir)
            outcome.compiled_convolutions = compiled_convolutions(work_dir / "hlo", seen=seen)
            if profile_dir is not None:
                outcome.was_profiled = True
                outcome.num_executions, outcome.num_loose_convolutions = count_executions(profile_dir)
            if run.batch_norm != "frozen":
                outcome.logits = make_evaluator(engine, model, reader).run()[1].tolist()
            outcomes.append(dataclasses.asdict(outcome))
    answer = {"num_replicas": engine.topology.num_replicas, "transport": transport, "outcomes": outcomes}
    (out_dir / f"worker-{engine.topology.worker_index}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]), pathlib.Path(sys.argv[4]))
