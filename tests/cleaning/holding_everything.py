"""Holds one of everything below a folder, as running commands do, and says so; started by the tests with ROOT."""

import contextlib
import pathlib
import sys

from trainer.data.preparation.work_folder import open_work_folder
from trainer.features.store import FeatureStore
from trainer.run import claim
from trainer.run.run_dir import RunDir
from trainer.system import atomic, in_use, xla_cache

root = pathlib.Path(sys.argv[1])
with contextlib.ExitStack() as stack:
    stack.enter_context(claim.hold_run(RunDir(root / "run"), "0" * 64, note=print))
    work = stack.enter_context(open_work_folder(root / "dataset", restart=False))
    (work.dataset / "train-00000.tfrecord").write_bytes(bytes(100))
    export = stack.enter_context(atomic.new_directory(root / "export"))
    (export / "model.tflite").write_bytes(bytes(100))
    stack.enter_context(in_use.scratch_folder())
    features = FeatureStore(root / "photos.features", budget_bytes=2**30).open("train", {"of": "photos"})
    assert features is not None
    xla_cache.use(root / "xla")
    print("held", flush=True)
    sys.stdin.read()
