"""Which settings decide the weights of a run: a verdict on every one of them."""

import pathlib
from typing import Any, Literal

import pytest

from trainer.config.config import Config, load_config
from trainer.run.run_dir import RunDir, RunInfo

FACTS = {"dataset_hash": "d" * 64, "precision": "float32"}
# With every setting at its default: what runs of the first version have recorded.
OF_DEFAULTS = "8a06d666aa491a6cd5d877d915c0b5c424ebfa38a0f454e1fdd559c550bf94c2"

Verdict = Literal["decides", "indifferent"]
# A new setting finds its place here: another value than its default, and whether it changes the trained weights.
SETTINGS: dict[str, tuple[Any, Verdict]] = {
    "data.path": ("elsewhere", "indifferent"),
    "data.resize": ("squash", "decides"),
    "data.sampling": ("weighted", "decides"),
    "data.run_length": (4, "decides"),
    "data.last_batch": ("drop", "decides"),
    "data.scaled_decoding": (False, "decides"),
    "data.cache": ("memory", "indifferent"),
    "data.cache_dir": ("elsewhere", "indifferent"),
    "data.ram_budget_gib": (1.0, "indifferent"),
    "data.num_parallel_reads": (3, "indifferent"),
    "model.backbone": ("resnet50", "decides"),
    "model.weights": ("none", "decides"),
    "model.pixels": ("0-1", "decides"),
    "model.image_size_px": (32, "decides"),
    "model.trainable": ("head", "decides"),
    "model.features_at": ("block", "decides"),
    "model.batch_norm": ("frozen", "decides"),
    "model.pooling": ("max", "decides"),
    "model.hidden_units": ([8], "decides"),
    "model.hidden_batch_norm": (True, "decides"),
    "model.dropout": (0.5, "decides"),
    # As resolved it decides; what was asked for does not.
    "model.head": ("replace", "indifferent"),
    "train.task": ("binary", "decides"),
    "train.loss": ("focal", "decides"),
    "train.focal_gamma": (1.0, "decides"),
    "train.class_weights": ("balanced", "decides"),
    "train.solver": ("ridge", "decides"),
    "train.ridge_strengths": ([1.0], "decides"),
    "train.epochs": (3.0, "decides"),
    "train.global_batch_size": (32, "decides"),
    "train.accumulate_steps": (2, "decides"),
    "train.ema_decay": (0.9, "decides"),
    "train.unfreeze": ([{"epoch": 1.0, "trainable": "all"}], "decides"),
    "train.patience": (3, "decides"),
    "train.seed": (1, "decides"),
    "train.label_smoothing": (0.1, "decides"),
    "train.max_skipped_steps": (5, "decides"),
    "train.on_non_finite": ("rollback", "decides"),
    "train.max_rollbacks": (1, "decides"),
    "optimizer.name": ("sgd", "decides"),
    "optimizer.learning_rate": (0.1, "decides"),
    "optimizer.scaling": ("linear", "decides"),
    "optimizer.scaling_batch_size": (128, "decides"),
    "optimizer.momentum": (0.5, "decides"),
    "optimizer.trust_coefficient": (0.01, "decides"),
    "optimizer.layer_decay": (0.5, "decides"),
    "optimizer.weight_decay": (0.1, "decides"),
    "optimizer.schedule": ("linear", "decides"),
    "optimizer.step_epochs": ([1.0], "decides"),
    "optimizer.step_factor": (0.5, "decides"),
    "optimizer.warmup_steps": (5, "decides"),
    "optimizer.warmup_epochs": (1.0, "decides"),
    "optimizer.clip_norm": (1.0, "decides"),
    "augment.preset": ("light", "decides"),
    "augment.min_crop_area": (0.5, "decides"),
    "augment.flip": (True, "decides"),
    "augment.color_jitter": (0.1, "decides"),
    "augment.randaugment_layers": (1, "decides"),
    "augment.randaugment_magnitude": (1.0, "decides"),
    "augment.erasing": (0.1, "decides"),
    "augment.mixup_alpha": (0.1, "decides"),
    "augment.cutmix_alpha": (0.1, "decides"),
    "augment.progressive_sizes_px": ([32, 224], "decides"),
    "augment.rotation_degrees": (20.0, "decides"),
    "augment.shift": (0.1, "decides"),
    "augment.zoom": (0.1, "decides"),
    "features.cache": ("on", "indifferent"),
    "features.dir": ("elsewhere", "indifferent"),
    "features.budget_gib": (1.0, "indifferent"),
    "features.runtime": ("tensorflow", "indifferent"),
    "features.views": (3, "decides"),
    "distribute.strategy": ("horovod", "indifferent"),
    "distribute.device": ("cpu", "indifferent"),
    "distribute.gpus": (1, "indifferent"),
    "distribute.replicas": (4, "indifferent"),
    "distribute.hosts": ("a:8", "indifferent"),
    "distribute.ssh_options": (["-p2222"], "indifferent"),
    "distribute.start_timeout_secs": (1.0, "indifferent"),
    "distribute.stall_timeout_secs": (1.0, "indifferent"),
    "distribute.stop_grace_secs": (1.0, "indifferent"),
    "distribute.host_timeout_secs": (1.0, "indifferent"),
    "distribute.min_replicas": (1, "indifferent"),
    "distribute.max_replicas": (4, "indifferent"),
    "distribute.host_discovery_script": ("hosts.sh", "indifferent"),
    "distribute.compression": ("float16", "decides"),
    "distribute.fusion_mib": (1.0, "indifferent"),
    "distribute.cycle_time_ms": (1.0, "indifferent"),
    # As resolved it decides; what was asked for does not.
    "distribute.precision": ("float32", "indifferent"),
    "distribute.xla": ("off", "indifferent"),
    "distribute.xla_cache_dir": ("xla", "indifferent"),
    "distribute.strict_batch": (True, "indifferent"),
    "checkpoint.every_steps": (7, "indifferent"),
    "checkpoint.every_secs": (60.0, "indifferent"),
    "checkpoint.keep": (9, "indifferent"),
    "checkpoint.best_metric": ("loss", "indifferent"),
    "log.every_steps": (1, "indifferent"),
}


def config_of(**settings: Any) -> Config:
    flags: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        flags.setdefault(section, {})[key] = value
    return load_config(flags=flags)


def test_every_setting_has_a_verdict() -> None:
    there_are = {f"{s}.{key}" for s, field in Config.model_fields.items() for key in field.annotation.model_fields}
    assert set(SETTINGS) == there_are, "whether a new setting decides the weights stands in SETTINGS"


@pytest.mark.parametrize("name", SETTINGS)
def test_the_identity_changes_with_what_decides_the_weights_and_with_nothing_else(name: str) -> None:
    value, verdict = SETTINGS[name]
    changed = config_of(**{name: value}).identity(**FACTS)
    assert (changed != OF_DEFAULTS) == (verdict == "decides")


def test_the_dataset_and_the_precision_that_was_resolved_decide() -> None:
    others = ({"dataset_hash": "e" * 64}, {"precision": "mixed_bfloat16"})
    assert OF_DEFAULTS not in [Config().identity(**{**FACTS, **other}) for other in others]


def test_the_best_metric_decides_where_it_ends_the_run() -> None:
    patient = config_of(**{"train.patience": 3})
    by_loss = config_of(**{"train.patience": 3, "checkpoint.best_metric": "loss"})
    assert patient.identity(**FACTS) != by_loss.identity(**FACTS)
    assert patient.identity(**FACTS) == patient.first_identity(**FACTS)


def test_a_run_of_before_has_the_identity_that_it_had() -> None:
    assert Config().identity(**FACTS) == Config().first_identity(**FACTS) == OF_DEFAULTS


def run_of_before(path: pathlib.Path, config: Config) -> RunDir:
    run = RunDir(path)
    info = RunInfo(
        name="before", identity=config.first_identity(**FACTS), dataset_dir="d", class_names=["a"],
        num_train_examples=1, image_size_px=32, weights="none", batch_norm="frozen", **FACTS,
    )  # fmt: skip
    run.create(config, info)
    return run


def test_a_run_of_before_with_compression_goes_on_with_it_and_not_without(tmp_path: pathlib.Path) -> None:
    compressed = config_of(**{"distribute.compression": "float16"})
    run = run_of_before(tmp_path / "run", compressed)
    assert run.identity() == compressed.identity(**FACTS) != Config().identity(**FACTS)


def test_settings_that_were_changed_beneath_a_run_do_not_make_it_another(tmp_path: pathlib.Path) -> None:
    run = run_of_before(tmp_path / "run", Config())
    run.config_file.write_text(run.config_file.read_text().replace("seed: 0", "seed: 1"))
    assert run.identity() == OF_DEFAULTS
