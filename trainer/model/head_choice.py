"""Choice between the last layer of a saved model, weight file or run, and a new one: `model.head`.

It is kept where it is of the same classes: as many, and where a file says their names, of the same names in order. Of a
saved model of the user's own all layers up to the last then stay, so that `model.trainable` head trains the last alone.
"""

import pathlib
from typing import Literal, NamedTuple

from trainer.config.model import ModelConfig
from trainer.config.training import ModelTask
from trainer.errors import ConfigError, ModelError
from trainer.model.backbones import saved_model
from trainer.model.backbones.registry import find_backbone
from trainer.model.classifier import backbone_of, build_configured, head_layers_of
from trainer.model.files.weight_files import open_weight_file
from trainer.model.match_weights import match, match_head
from trainer.system.private_api.keras_scopes import variables_without_memory

Head = Literal["keep", "replace"]
OF_NOBODY = ("bundled", "imagenet", "none")


class HeadChoice(NamedTuple):
    """The origin of the head's weights.

    Attributes:
        to_last_layer: whether a saved model of the user's own stays as it is up to its last layer, or is cut at its
            last features of height and width.
        reason: a sentence for people; empty where there is no head that could be kept.
    """

    head: Head = "replace"
    to_last_layer: bool = False
    reason: str = ""


class HeadInputs(NamedTuple):
    """The settings, as resolved, and what dataset and file say of classes: all that the choice depends on."""

    config: ModelConfig
    weights: str
    task: ModelTask
    class_names: list[str]
    # Of the run that the weights are of, where they are of one.
    class_names_of_weights: list[str] | None
    image_size_px: int
    # What else of the run does not go with a head that is kept.
    obstacle: str | None = None

    @property
    def num_logits(self) -> int:
        return 1 if self.task == "binary" else len(self.class_names)


def choose_head(inputs: HeadInputs) -> HeadChoice:
    """Decide whether the head is kept; open the file, and build the network without memory.

    Raises:
        ConfigError: `model.head` is keep, and there is no head that could be.
        ModelError: the file cannot be read, does not fit the backbone, or is a model that a new head cannot stand on.
    """
    choice = _choose(inputs)
    if saved_model.is_own_model(inputs.config.backbone) and not choice.to_last_layer:
        saved_model.check_features(inputs.config.backbone)
    return choice


def _choose(inputs: HeadInputs) -> HeadChoice:
    asked, config = inputs.config.head, inputs.config
    is_own = saved_model.is_own_model(config.backbone)
    if asked == "replace":
        return HeadChoice(reason="the last layer is new, as asked")
    if asked == "auto" and not is_own and inputs.weights in OF_NOBODY:
        return HeadChoice()
    obstacle = _obstacle_anywhere(inputs, is_own=is_own)
    if obstacle is None:
        # The file of a run on a saved model may hold a head of ours in place of the model's own last layers.
        ways = ([True] if is_own else []) + ([False] if inputs.weights not in OF_NOBODY else [])
        obstacles = [_obstacle_on_the_way(inputs, to_last_layer=to_last_layer) for to_last_layer in ways]
        if None in obstacles:
            return HeadChoice("keep", ways[obstacles.index(None)], _reason_to_keep(inputs))
        obstacle = obstacles[0]
    if asked == "keep":
        raise ConfigError(f"model.head is keep, but {obstacle}; use --set model.head=replace")
    return HeadChoice(reason=f"the last layer is new: {obstacle}")


def _reason_to_keep(inputs: HeadInputs) -> str:
    names = "and of the same names" if inputs.class_names_of_weights else "and its file does not name its classes"
    what = "1 number for two classes" if inputs.task == "binary" else f"{inputs.num_logits} classes"
    source = inputs.config.backbone if inputs.weights in OF_NOBODY else inputs.weights
    return f"the last layer of {source} is kept: it has {what}, as the dataset, {names}"


def _obstacle_anywhere(inputs: HeadInputs, *, is_own: bool) -> str | None:
    """Return what in the settings and classes forbids to keep the head, whatever the file holds; None if nothing."""
    config = inputs.config
    if inputs.obstacle is not None:
        return inputs.obstacle
    if inputs.weights == "none":
        return "model.weights is none, so that nothing is started from"
    if config.features_at is not None:
        return f"model.features_at is {config.features_at}, whose output no saved last layer was trained on"
    if not is_own and inputs.weights in OF_NOBODY:
        return f"the weights ({inputs.weights}) are those of a backbone, not of a classifier of yours"
    theirs = inputs.class_names_of_weights
    if theirs is not None and theirs != inputs.class_names:
        return _difference(theirs, inputs.class_names)
    return None


def _difference(theirs: list[str], ours: list[str]) -> str:
    if len(theirs) != len(ours):
        return f"the weights are of {len(theirs)} classes, and the dataset has {len(ours)}"
    first = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f"class {first} of the weights is called {theirs[first]!r}, and that of the dataset {ours[first]!r}"


def _obstacle_on_the_way(inputs: HeadInputs, *, to_last_layer: bool) -> str | None:
    obstacle = _obstacle_in_model(inputs) if to_last_layer else None
    if obstacle is not None or inputs.weights in OF_NOBODY:
        return obstacle
    try:
        return _obstacle_in_file(inputs, to_last_layer=to_last_layer)
    except ModelError as e:
        if not to_last_layer:
            raise
        return str(e).partition(";")[0]


def _obstacle_in_model(inputs: HeadInputs) -> str | None:
    """Return what in a saved model's last layer, and before it, forbids to keep it; None if nothing."""
    config = inputs.config
    name = config.backbone
    last = saved_model.last_layer_of(name)
    if last is None:
        return f"{name} does not end with a dense layer with softmax, sigmoid or no activation"
    if last.num_outputs != inputs.num_logits:
        return f"{name} answers with {_counted(last.num_outputs)}, and {_needed(inputs)}"
    wrong = "softmax" if inputs.task in ("binary", "multi_label") else "sigmoid"
    if last.activation == wrong:
        return f"{name} ends with {wrong}, and this is a {inputs.task} model"
    if config.hidden_units:
        return f"model.hidden_units is {config.hidden_units}, layers that {name} does not have"
    shape = (inputs.image_size_px, inputs.image_size_px, 3)
    try:
        with variables_without_memory():
            find_backbone(name, config.pixels, to_last_layer=True).build(shape)
    except ModelError as e:
        return str(e).partition(";")[0]
    return None


def _obstacle_in_file(inputs: HeadInputs, *, to_last_layer: bool) -> str | None:
    """Return why a head cannot be taken from what a weight file has beside the backbone; None if it can."""
    with variables_without_memory(), open_weight_file(pathlib.Path(inputs.weights)) as arrays:
        classifier = build_configured(
            inputs.config,
            task=inputs.task,
            num_classes=len(inputs.class_names),
            image_size_px=inputs.image_size_px,
            to_last_layer=to_last_layer,
        )
        found = match(backbone_of(classifier), arrays, file=inputs.weights, backbone=inputs.config.backbone)
        if match_head(found.left_over, head_layers_of(classifier)) is not None:
            return None
    if not found.left_over:
        return f"{inputs.weights} has no layer behind the backbone"
    sizes = ", ".join(f"{array.name} {list(array.shape)}" for array in found.left_over[:3])
    return f"what {inputs.weights} has behind the backbone ({sizes}) does not fit, since {_needed(inputs)}"


def _counted(num: int) -> str:
    return f"{num} number{'s'[: num != 1]}"


def _needed(inputs: HeadInputs) -> str:
    return f"the {len(inputs.class_names)} classes of this {inputs.task} model need {_counted(inputs.num_logits)}"
