"""Build the classifier of a run and load a checkpoint into it."""

from typing import Any

from trainer.run.checkpoint_store import Weights, Which, load_model_arrays
from trainer.run.run_dir import RunDir


def load_classifier(
    run: RunDir, *, which: Which | int = "best", weights: Weights = "auto", dtype_policy: str = "float32"
) -> Any:
    """Rebuild the classifier of `run` for inference with the weights of a checkpoint.

    `dtype_policy` is a Keras dtype policy, which need not be that of training.

    Raises:
        RunError: as for `load_model_arrays`.
    """
    # Imported here: listing and reading checkpoints does not need Keras.
    from trainer.model.backbones.registry import find_backbone
    from trainer.model.classifier import assign_arrays, build_configured, match_arrays, saved_variables
    from trainer.system.private_api.keras_scopes import variables_without_memory

    info, config = run.info(), run.config()
    step, arrays = load_model_arrays(run, which, weights)
    origin = f"the checkpoint of step {step}"

    def build() -> Any:
        return build_configured(
            config.model,
            task=info.task,
            num_classes=len(info.class_names),
            image_size_px=info.image_size_px,
            dtype_policy=dtype_policy,
            to_last_layer=info.to_last_layer,
        )

    find_backbone(config.model.backbone, config.model.pixels)  # a saved model is opened once, with its values
    with variables_without_memory():
        # Settings from elsewhere may describe a model too large for memory.
        match_arrays(saved_variables(build()), arrays, origin=origin)
    model = build()
    assign_arrays(saved_variables(model), arrays, origin=origin)
    return model
