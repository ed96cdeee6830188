"""Train image classifiers: from a folder of labelled images to a resumable run and a verified export.

These functions do what the commands of the same names do, and raise `TrainerError` where a command prints an error; see
docs/python.md. All other code lies in folders, whose levels are in ARCHITECTURE.md. Read `launch/plan_run.py` first: it
shows how the parts come together.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from trainer.errors import StoppedOnRequest, TrainerError, UsageError

if TYPE_CHECKING:
    from export.files.parity import ParityReport
    from export.gate.replay import Verification
    from export.pipeline.options import ExportOptions
    from export.prediction.predictions import ImagePrediction
    from trainer.data.dataset.manifest import Manifest
    from trainer.data.dataset.verify import DatasetVerification
    from trainer.data.preparation.options import PrepareOptions
    from trainer.metrics.evaluation import Evaluation

__all__ = [
    "Dataset",
    "Export",
    "Run",
    "StoppedOnRequest",
    "TrainerError",
    "UsageError",
    "__version__",
    "evaluate",
    "export",
    "predict",
    "prepare",
    "train",
    "verify",
]
__version__ = "0.1.0"

StrPath = str | pathlib.Path
Note = Callable[[str], None]
_AUTO = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """A prepared dataset: its directory, and its manifest (classes, splits, unusable files)."""

    path: pathlib.Path
    manifest: "Manifest"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: its directory, and the number of steps in its plan."""

    path: pathlib.Path
    num_train_steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """An export that passed the gate: its directory, its version, and how each artifact compares with the model."""

    path: pathlib.Path
    version: int
    parity: "ParityReport"


def prepare(
    source: StrPath,
    out: StrPath,
    *,
    options: "PrepareOptions | None" = None,
    overwrite: bool = False,
    note: Note | None = None,
) -> Dataset:
    """Prepare labelled images as a sharded dataset.

    Args:
        source: a folder with one folder of images per class, a listing, an archive, or the name of a built-in source.
        out: the directory of the dataset.
        options: shares of the splits, seed and more (`trainer.data.preparation.options.PrepareOptions`).
        overwrite: whether a dataset at `out` is replaced.
        note: called with each message that the command would print; None: print nothing.

    Raises:
        UsageError: the source cannot be used, or `out` exists.
    """
    from trainer.data.preparation.prepare import prepare_dataset
    from trainer.system.paths import as_path

    path = as_path(out)
    manifest = prepare_dataset(os.fspath(source), path, options=options, overwrite=overwrite, note=note or _ignore)
    return Dataset(path=path, manifest=manifest)


def train(
    data: StrPath | None = None,
    *,
    run_dir: StrPath | None = None,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool | StrPath = True,
    note: Note | None = None,
) -> Run:
    """Train a classifier to the end, or continue a run.

    Args:
        data: a prepared dataset, or a folder with one folder of images per class, which is prepared first; None: that
            of the run to resume.
        run_dir: the run directory; None: an unfinished run of the same settings below ./runs, or a new one.
        recipe: the name of a recipe, or "auto"; None: the default settings.
        settings: single settings by their names, such as {"train.epochs": 5, "distribute.device": "cpu"}.
        resume: continue an existing run in `run_dir`; False: an existing run is an error. The directory of a run:
            continue it with its own settings and dataset, in place of `run_dir` and `recipe`.
        note: called with each message that the command would print; None: print nothing.

    Raises:
        UsageError: the settings are wrong, or this machine cannot meet them; nothing was started.
        TrainingError: training failed.
        StoppedOnRequest: a signal (Ctrl-C) stopped it; the state is saved, and the same call continues.
    """
    from trainer.config.config import load_config
    from trainer.launch.settings_of_run import settings_of_run, to_arguments
    from trainer.run.run_dir import RunDir
    from trainer.system import tf_runtime
    from trainer.system.paths import as_path

    # JSON is YAML, in which the command takes its values: both understand the same settings, and so do workers.
    overrides = [f"{name}={json.dumps(value)}" for name, value in (settings or {}).items()]
    flags = {} if data is None else {"data": {"path": os.fspath(data)}}
    if is_named := not isinstance(resume, bool):
        if run_dir is not None or recipe is not None:
            raise UsageError(
                f"resume={os.fspath(resume)!r} names the run and its settings; leave run_dir and recipe out"
            )
        run_dir, config = resume, settings_of_run(RunDir(resume), overrides, flags=flags)
    else:
        config = load_config(None, overrides, recipe=None if recipe == _AUTO else recipe, flags=flags)
    tf_runtime.configure(use_gpus=config.distribute.device != "cpu", xla_cache_dir=config.distribute.xla_cache_dir)

    from trainer.launch.plan_run import find_dataset, plan_run
    from trainer.launch.run_session import RunSession
    from trainer.launch.start_run import train_session
    from trainer.plan.recipe_choice import choose_recipe

    say = note or _ignore
    if recipe == _AUTO:
        recipe, reason = choose_recipe(config, find_dataset(config, say))
        say(f"recipe {recipe}: {reason}")
        config = load_config(None, overrides, recipe=recipe, flags=flags)
    path = None if run_dir is None else as_path(run_dir)
    planned = plan_run(config, run_dir=path, resume=is_named or bool(resume), note=say, recipe=recipe)
    arguments = to_arguments(config) if is_named else [f"--set={override}" for override in overrides]
    with RunSession.open(planned, say) as session:
        train_session(session, ["launch", *arguments])
        return Run(path=session.directory.path, num_train_steps=planned.plan.schedule.num_train_steps)


def evaluate(
    run: StrPath,
    *,
    split: Literal["train", "validation", "test"] = "test",
    which: Literal["best", "last"] = "best",
    device: Literal["auto", "cpu", "gpu"] = "auto",
    note: Note | None = None,
) -> "Evaluation":
    """Evaluate a checkpoint of a run on every example of a split, and write `RUN/evaluation/<split>.json`.

    Args:
        run: the run directory.
        split: the split of the dataset.
        which: the checkpoint: the best on the validation split, or the last.
        device: where to compute.
        note: called with each message that the command would print; None: print nothing.

    Raises:
        UsageError: there is no such run, checkpoint, split or device.
    """
    from trainer.config.config import load_config
    from trainer.run.run_dir import RunDir
    from trainer.system import tf_runtime

    opened = RunDir(run)
    opened.info()
    settings = load_config(flags={"distribute": {"device": device}}).distribute
    tf_runtime.configure(use_gpus=device != "cpu")

    from trainer.distribute.mirrored import make_engine
    from trainer.distribute.topology import resolve_topology
    from trainer.evaluation.evaluate_run import evaluate_run

    topology = resolve_topology(settings, num_gpus_found=len(tf_runtime.list_gpus()))
    return evaluate_run(opened, split, make_engine(topology), which=which, note=note or _ignore)


def export(run: StrPath, out: StrPath, *, options: "ExportOptions | None" = None) -> Export:
    """Export a run to SavedModel, TFLite and ONNX, each compared with the run before anything is published.

    Args:
        run: the run directory.
        out: the directory of the export.
        options: formats, name, version and more (`export.pipeline.options.ExportOptions`).

    Raises:
        UsageError: there is no such run or checkpoint, an option is wrong, or `out` exists.
        ExportError: a format cannot represent the model.
        ParityError: an artifact answers differently from the model; nothing was written.
    """
    from export.pipeline.export_run import export_run
    from export.pipeline.options import ExportOptions
    from trainer.run.run_dir import RunDir
    from trainer.system.paths import as_path

    path = as_path(out)
    exported = export_run(RunDir(run), path, options or ExportOptions())
    return Export(path=path, version=exported.version, parity=exported.report)


def predict(
    target: StrPath, images: Sequence[StrPath], *, top: int = 5, which: Literal["best", "last"] = "best"
) -> "list[ImagePrediction]":
    """Predict the classes of image files; a file that cannot be read has an `error` and no classes.

    Args:
        target: a run, an export, a .tflite or .onnx file of one, a SavedModel version directory, or http://HOST:PORT.
        images: image files, of every kind that `prepare` takes.
        top: how many classes to list for each image, the most probable first.
        which: the checkpoint of a run.

    Raises:
        UsageError: `target` is none of these, or a file does not exist.
    """
    from trainer.system.paths import as_path

    paths = [as_path(image) for image in images]
    if os.fspath(target).startswith(("http://", "https://")):
        from export.prediction.predictions import predict_on_server
        from serving.clients.rest_client import predict_images_of_files

        return predict_on_server(predict_images_of_files, os.fspath(target), paths, top)
    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=False)

    from export.prediction.predict import open_target

    return open_target(as_path(target), which=which).predict_files(paths, top)


def verify(target: StrPath) -> "DatasetVerification | Verification":
    """Verify every byte of a prepared dataset, or the checksums and golden images of an export.

    Args:
        target: a prepared dataset, also a gs:// URL, or an export.

    Raises:
        UsageError: `target` is neither.
        TrainerError: it is damaged, or answers differently on this machine; the first such file is named.
    """
    from trainer.data.dataset.manifest import is_prepared
    from trainer.data.dataset.storage import RemotePath, parse_path

    path = parse_path(os.fspath(target))
    verification: DatasetVerification | Verification
    if isinstance(path, RemotePath) or is_prepared(path):
        from trainer.data.dataset.verify import verify_dataset

        verification = verify_dataset(path)
    else:
        from export.files.checksums import Checksums
        from trainer.system import tf_runtime

        Checksums.load(path)  # refuse a wrong directory before TensorFlow starts
        tf_runtime.configure(use_gpus=False)

        from export.gate.replay import verify_export

        verification = verify_export(path)
    verification.raise_on_failure()
    return verification


def _ignore(_: str) -> None: ...
