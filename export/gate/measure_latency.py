"""Measure `EXPORT/latency.json`: milliseconds per image of every artifact in its own runtime, and of the run's model.

Each number of threads has its own process, bound to as many cores, since TensorFlow sets its threads once. All
contenders take turns in every round, so that other load on the machine affects all of them.
"""

import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from export.files.latency import FILE_NAME, Latency, LatencyReport
from trainer.errors import ExportError, RunError, UsageError
from trainer.system import trust
from trainer.system.child_python import python_command
from trainer.system.environment import cpu_model

MODEL = "model of the run"
_TRUST = "--trust"
_WARM_UP_CALLS = 3
_TURN_SECS = 0.1
_MAX_TURN_CALLS = 200


def measure_latency(
    export_dir: pathlib.Path, run_dir: pathlib.Path | None, *, num_threads: Sequence[int], num_rounds: int
) -> LatencyReport:
    """Measure every artifact of `export_dir`, and the model of the run at `run_dir` that it was exported from.

    Raises:
        UsageError: more threads than this process may use cores.
        ArtifactError, RunError: no export, no run, or another run than the export's.
        ExportError: an artifact does not run here.
    """
    cores = sorted(os.sched_getaffinity(0))
    if max(num_threads) > len(cores):
        raise UsageError(f"--threads {max(num_threads)} is more than the {len(cores)} available cores; use fewer")
    rows: list[Latency] = []
    for number in num_threads:
        arguments = [str(export_dir), str(run_dir or ""), str(number), str(num_rounds)]
        if trust.is_given():
            arguments.append(_TRUST)
        ended = subprocess.run(  # noqa: S603  this very program
            python_command("export.gate.measure_latency", *arguments),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        answer = json.loads(ended.stdout.splitlines()[-1]) if ended.returncode == 0 else {}
        if "rows" not in answer:
            said = answer.get("error") or (ended.stderr.strip().splitlines() or ["nothing"])[-1]
            raise ExportError(f"the artifacts do not run with {number} threads: {said}")
        rows += [Latency.model_validate(row) for row in answer["rows"]]
    return LatencyReport(cpu=cpu_model() or platform.machine(), num_rounds=num_rounds, rows=rows)


def check_run(export_dir: pathlib.Path, run_dir: pathlib.Path) -> None:
    """Raise RunError if the export is not of the run at `run_dir`."""
    from export.files.provenance import ExportProvenance
    from trainer.run.run_dir import RunDir

    identity, expected = RunDir(run_dir).info().identity, ExportProvenance.load(export_dir).run.identity
    if identity != expected:
        raise RunError(
            f"{export_dir} is an export of another run ({expected[:12]}) than {run_dir} ({identity[:12]}); give --run "
            "the one that it was made from"
        )


def record_latency(export_dir: pathlib.Path, report: LatencyReport) -> None:
    """Write the figures to `latency.json` and the model card, and update their checksums."""
    from export.documents import model_card
    from export.files.checksums import replace_files

    card = model_card.with_latency((export_dir / model_card.FILE_NAME).read_text(encoding="utf-8"), report)
    replace_files(
        export_dir, {FILE_NAME: f"{report.model_dump_json(indent=2)}\n".encode(), model_card.FILE_NAME: card.encode()}
    )


def _measure_in_this_process(
    export_dir: pathlib.Path, run_dir: pathlib.Path | None, num_threads: int, num_rounds: int
) -> list[Latency]:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_threads])
    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=False)
    contenders = _open_contenders(export_dir, run_dir)
    num_calls = [_warm_up(contender.predict) for contender in contenders]
    times: list[list[float]] = [[] for _ in contenders]
    for _ in range(num_rounds):
        for contender, calls, own in zip(contenders, num_calls, times, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                contender.predict()
            own.append(1e3 * (time.perf_counter() - start) / calls)
    model = times[0] if run_dir else None
    return [
        Latency(
            title=contender.title,
            path=contender.path,
            runtime=contender.runtime,
            num_bytes=contender.num_bytes,
            num_threads=num_threads,
            ms=[round(ms, 4) for ms in own],
            relative=None if model is None else [round(a / b, 4) for a, b in zip(own, model, strict=True)],
        )
        for contender, own in zip(contenders, times, strict=True)
    ]


class _Contender(NamedTuple):
    """One way to predict an image: the run's model, or one input of an artifact."""

    title: str
    path: str | None
    runtime: str
    num_bytes: int
    predict: Callable[[], object]


def _open_contenders(export_dir: pathlib.Path, run_dir: pathlib.Path | None) -> list[_Contender]:
    from export.files.parity import ParityReport, size_on_disk
    from export.files.signature import IMAGE_BYTES, Signature
    from export.gate.golden import Golden
    from export.runtime.runtimes import KerasRuntime, SavedModelRuntime, open_runtime

    batch = Golden.load(export_dir).batch
    images, encoded = batch.images[:1], batch.encoded[:1]
    found: list[_Contender] = []
    if run_dir is not None:
        from export.files.provenance import ExportProvenance
        from trainer.run.checkpoint_store import find_model_file
        from trainer.run.load_classifier import load_classifier
        from trainer.run.run_dir import RunDir

        run, of_run = RunDir(run_dir), ExportProvenance.load(export_dir).run
        checkpoint, weights = of_run.checkpoint, of_run.exported_weights
        signature = Signature.load(export_dir)
        model = KerasRuntime(
            load_classifier(run, which=checkpoint, weights=weights),
            task=signature.task,
            temperature=signature.temperature,
        )
        size = find_model_file(run, checkpoint, weights)[0].stat().st_size
        found.append(_Contender(MODEL, None, model.name, size, lambda: model.predict_probabilities(images)))
    report = ParityReport.load(export_dir)
    for artifact in report.artifacts():
        path = export_dir / artifact.path
        runtime = open_runtime(path)
        for comparison in report.inputs_of(artifact):

            def call(runtime: object = runtime, takes_bytes: bool = comparison.input == IMAGE_BYTES) -> object:
                if takes_bytes:
                    assert isinstance(runtime, SavedModelRuntime)
                    return runtime.predict_encoded(encoded)
                return runtime.predict_probabilities(images)  # type: ignore[attr-defined]

            found.append(_Contender(comparison.title, artifact.path, runtime.name, size_on_disk(path), call))
    return found


def _warm_up(call: Callable[[], object]) -> int:
    """Warm up and return how many calls fill a turn."""
    for _ in range(_WARM_UP_CALLS):
        start = time.perf_counter()
        call()
        secs = time.perf_counter() - start
    return max(1, min(_MAX_TURN_CALLS, int(_TURN_SECS / max(secs, 1e-6))))


def main() -> None:
    """Run `export.gate.measure_latency EXPORT RUN NUM_THREADS NUM_ROUNDS [--trust]`; RUN may be empty.

    Prints one line of JSON.
    """
    from trainer.errors import TrainerError

    export_dir, run_dir, num_threads, num_rounds, *options = sys.argv[1:]
    trust.set_trust(options == [_TRUST])
    try:
        rows = _measure_in_this_process(
            pathlib.Path(export_dir), pathlib.Path(run_dir) if run_dir else None, int(num_threads), int(num_rounds)
        )
        answer: dict[str, object] = {"rows": [row.model_dump(mode="json") for row in rows]}
    except TrainerError as e:
        answer = {"error": str(e)}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
