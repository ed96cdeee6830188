"""The settings that decide the trained weights, and so belong to the identity of a run.

A setting does unless it is listed in `INDIFFERENT`; a new one that does not must be added there.
`tests/config/test_identity.py` holds the verdict on each setting.
"""

from typing import Any, Final

from trainer.config.section import Section

# Settings of the machine, of the speed and of the files of a run. Devices, replicas and XLA are among them: they
# change the order of sums and nothing else, so that a run may be resumed on another machine.
INDIFFERENT: Final = {
    "data": {"path", "cache", "cache_dir", "ram_budget_gib", "num_parallel_reads"},
    # As resolved, it is part of the identity by itself.
    "model": {"head"},
    # `cache` is on only where it changes no result, and each runtime is held to Keras's numbers.
    "features": {"cache", "dir", "budget_gib", "runtime"},
    "distribute": {
        "strategy",
        "device",
        "gpus",
        "replicas",
        "hosts",
        "ssh_options",
        "start_timeout_secs",
        "stall_timeout_secs",
        "stop_grace_secs",
        "host_timeout_secs",
        "min_replicas",
        "max_replicas",
        "host_discovery_script",
        "fusion_mib",
        "cycle_time_ms",
        # As resolved, it is part of the identity by itself.
        "precision",
        "xla",
        "xla_cache_dir",
        "strict_batch",
    },
    "checkpoint": {"every_steps", "every_secs", "keep"},
    "log": {"every_steps"},
}
# In the identity of every run, whatever their value. Later ones are where they are not at their default, so that a
# run from before them has the identity that it had.
ALWAYS: Final = {
    "data": ("resize", "sampling", "run_length", "last_batch", "scaled_decoding"),
    "model": (
        *("backbone", "weights", "pixels", "image_size_px", "trainable", "features_at", "batch_norm", "pooling"),
        *("hidden_units", "hidden_batch_norm", "dropout"),
    ),
    "train": (
        *("task", "loss", "focal_gamma", "class_weights", "solver", "ridge_strengths", "epochs", "global_batch_size"),
        *("accumulate_steps", "ema_decay", "unfreeze", "patience", "seed", "label_smoothing", "max_skipped_steps"),
    ),
    "optimizer": (
        *("name", "learning_rate", "scaling", "scaling_batch_size", "momentum", "trust_coefficient", "layer_decay"),
        *("weight_decay", "schedule", "step_epochs", "step_factor", "warmup_steps", "warmup_epochs", "clip_norm"),
    ),
    "augment": (
        *("preset", "min_crop_area", "flip", "color_jitter", "randaugment_layers", "randaugment_magnitude", "erasing"),
        *("mixup_alpha", "cutmix_alpha", "progressive_sizes_px"),
    ),
}


def decisive_settings(config: Section) -> dict[str, Any]:
    """Return the deciding settings by section: those of `ALWAYS`, and later ones that differ from their default."""
    return _settings(config, with_later=True)


def first_decisive_settings(config: Section) -> dict[str, Any]:
    """Return the deciding settings without later ones, as the first versions recorded them."""
    return _settings(config, with_later=False)


def _settings(config: Section, *, with_later: bool) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    asked, defaults = config.model_dump(mode="json"), type(config)().model_dump(mode="json")
    if asked["train"]["accumulate_steps"] == "auto":
        # More parts change no result, and 1 was the default once.
        asked["train"]["accumulate_steps"] = 1
    for section, values in asked.items():
        always = ALWAYS.get(section, ())
        taken = {name: values[name] for name in always}
        if with_later:
            later = set(values) - set(always) - INDIFFERENT.get(section, set())
            taken |= {name: values[name] for name in later if values[name] != defaults[section][name]}
        if taken:
            parts[section] = taken
    if asked["train"]["patience"] is None:
        # The best metric decides the weights only if it decides when the run ends.
        parts.pop("checkpoint", None)
    if asked["features"]["views"] is not None:
        # Earlier versions recorded it here.
        parts["views"] = asked["features"]["views"]
        parts.get("features", {}).pop("views", None)
    return {section: taken for section, taken in parts.items() if taken}
