"""python export_in_a_fresh_process.py WEIGHTS OUT: publishes the classifier with these weights in every format."""

import pathlib
import sys

import numpy as np

from trainer.system import tf_runtime

tf_runtime.configure(use_gpus=False)

from digits_classifier import SIGNATURE, build_model, copy_of, read_digits  # noqa: E402

from export.files.formats import FORMATS  # noqa: E402
from export.files.provenance import Provenance  # noqa: E402
from export.pipeline.make_export import ExportRequest, make_export  # noqa: E402

model = build_model()
with np.load(sys.argv[1]) as archive:
    model.set_weights([archive[f"arr_{i}"] for i in range(len(archive.files))])
provenance = Provenance(
    run_name="digits-run",
    run_identity="ab" * 32,
    global_step=228,
    which="best",
    backbone="small_cnn",
    weights="none",
    precision="float32",
    num_train_examples=1200,
    config_yaml="train:\n  epochs: 6\n",
)
export_request = ExportRequest(
    model=model,
    signature=SIGNATURE,
    version=3,
    formats=list(FORMATS.values()),
    validation=read_digits("validation"),
    training=read_digits("train"),
    max_parity_images=None,
    provenance=provenance,
    build_bfloat16=lambda: copy_of(model, "mixed_bfloat16"),
)
make_export(export_request, pathlib.Path(sys.argv[2]))
