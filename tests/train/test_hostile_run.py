"""A run from elsewhere is data: what it asks for beyond that is refused in one sentence, before any of it is built."""

import hashlib
import json
import os
import pathlib
import pickle
import resource
import shutil
import time
from collections.abc import Callable

import numpy as np
import pytest
import safetensors.numpy

from trainer.config.config import load_config
from trainer.errors import UsageError
from trainer.model.classifier import build_classifier, named_arrays, saved_variables
from trainer.run.checkpoint import Checkpoint, CheckpointInfo
from trainer.run.checkpoint_store import CheckpointStore
from trainer.run.load_classifier import load_classifier
from trainer.run.run_dir import RunDir, RunInfo

_STEP = "checkpoints/step-00000040"


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    run = RunDir(tmp_path_factory.mktemp("runs") / "honest")
    config = load_config(overrides=["model.backbone=mobilenet", "model.weights=none"])
    info = RunInfo(
        name="honest",
        identity="ab" * 32,
        dataset_dir="dataset",
        dataset_hash="cd" * 32,
        class_names=["cat", "dog", "owl"],
        num_train_examples=9,
        image_size_px=32,
        weights="none",
        precision="float32",
        batch_norm="per_replica",
    )
    run.create(config, info)
    model = build_classifier(backbone="mobilenet", num_classes=3, image_size_px=32)
    saved = CheckpointInfo(
        global_step=40,
        identity=info.identity,
        num_replicas=1,
        loss_scale=1.0,
        num_good_steps=0,
        num_skipped_steps=0,
    )
    store = CheckpointStore.of_run(run, config.checkpoint)
    store.save(Checkpoint(saved, named_arrays(saved_variables(model)), {}, {}))
    return run.path


def _replace_weights(run: pathlib.Path, content: bytes) -> None:
    """Put other weights into the checkpoint, with the checksums that go with them."""
    (run / _STEP / "model.safetensors").write_bytes(content)
    info = json.loads((run / _STEP / "checkpoint.json").read_bytes())
    info["sha256"]["model.safetensors"] = hashlib.sha256(content).hexdigest()
    info["info_sha256"] = ""
    info["info_sha256"] = hashlib.sha256(json.dumps(info).encode()).hexdigest()
    (run / _STEP / "checkpoint.json").write_text(json.dumps(info))


def _replace_setting(run: pathlib.Path, old: str, new: str) -> None:
    text = (run / "config.yaml").read_text()
    assert old in text
    (run / "config.yaml").write_text(text.replace(old, new))


def _replace_by_pipe(file: pathlib.Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _replace_by_device(file: pathlib.Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


class _Evil:
    def __reduce__(self) -> object:
        return (pytest.fail, ("it was unpickled",))


def _doubling_yaml(run: pathlib.Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 64)]
    (run / "config.yaml").write_text("\n".join([*lines, "model: *a63"]))


HOSTILE: dict[str, tuple[Callable[[pathlib.Path], None], str]] = {
    "pickle": (lambda run: _replace_weights(run, pickle.dumps(_Evil())), "not a weight file of this checkpoint"),
    "python-in-yaml": (
        lambda run: (run / "config.yaml").write_text("model: !!python/object/apply:os.system [exit]"),
        "is not readable YAML",
    ),
    "yaml-bomb": (_doubling_yaml, "uses a YAML alias"),
    "device": (lambda run: _replace_by_device(run / _STEP / "model.safetensors"), "is a device, a pipe"),
    "pipe": (lambda run: _replace_by_pipe(run / _STEP / "checkpoint.json"), "is a device, a pipe"),
    "pipe-for-the-run": (lambda run: _replace_by_pipe(run / "config.yaml"), "is a device, a pipe"),
    "device-for-the-run": (lambda run: _replace_by_device(run / "run.json"), "not a run directory|is a device"),
    "huge-settings": (lambda run: os.truncate(run / "config.yaml", 1 << 40), "1,099,511,627,776 bytes"),
    "huge-head": (
        lambda run: _replace_setting(run, "hidden_units: []", "hidden_units: [2147483647]"),
        "does not fit the model: .* wants .*2147483647",
    ),
    "own-model": (
        lambda run: (
            _replace_setting(run, "backbone: mobilenet", f"backbone: {run / 'evil.keras'}"),
            _replace_setting(run, "pixels: null", "pixels: 0-1"),
            (run / "evil.keras").write_bytes(pickle.dumps(_Evil())),
        )[0],
        "evil.keras is not a readable model",
    ),
    "arrays-of-another-model": (
        lambda run: _replace_weights(run, safetensors.numpy.save({"00000:a": np.zeros(3, np.float32)})),
        "does not fit the model",
    ),
    "no-weights": (lambda run: (run / _STEP / "model.safetensors").unlink(), "not a weight file of this checkpoint"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_run_is_refused(name: str, honest: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = pathlib.Path(shutil.copytree(honest, tmp_path / "run"))
    damage, words = HOSTILE[name]
    damage(run)
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UsageError, match=words) as caught:
        load_classifier(RunDir(run))
    assert time.process_time() - start < 10
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < 256 << 20
    assert caught.value.exit_status == 2 and "\n" not in str(caught.value)


def test_the_honest_run_that_these_are_made_from_is_taken(honest: pathlib.Path) -> None:
    assert load_classifier(RunDir(honest)).output_shape == (None, 3)
