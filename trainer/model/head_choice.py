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
from trainer.model.files.abstract_variables import variables_without_memory
from trainer.model.files.weight_files import open_weight_file
from trainer.model.match_weights import match, match_head

Head = Literal["keep", "replace"]
OF_NOBODY = ("bundled", "imagenet", "none")


class HeadChoice(NamedTuple):
    """`head`: what its weights start from.

    `to_last_layer`: whether a saved model of the user's own stays as it is up to its last layer, or is cut at its last
    features of height and width. `reason`: a sentence for people; empty where there is no head that could be kept.
    """

    head: Head = "replace"
    to_last_layer: bool = False
    reason: str = ""


class HeadQuestion(NamedTuple):
    """All that the choice depends on: settings, as resolved, and what the dataset and the file say of classes."""

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


def choose_head(question: HeadQuestion) -> HeadChoice:
    """Decide; opens the file, and builds the network without memory for it.

    Raises:
        ConfigError: `model.head` is keep, and there is no head that could be.
        ModelError: the file cannot be read, does not fit the backbone, or is a model that a new head cannot stand on.
    """
    choice = _choose(question)
    if saved_model.is_own_model(question.config.backbone) and not choice.to_last_layer:
        saved_model.check_features(question.config.backbone)
    return choice


def _choose(question: HeadQuestion) -> HeadChoice:
    asked, config = question.config.head, question.config
    is_own = saved_model.is_own_model(config.backbone)
    if asked == "replace":
        return HeadChoice(reason="the last layer is new, as asked")
    if asked == "auto" and not is_own and question.weights in OF_NOBODY:
        return HeadChoice()
    obstacle = _obstacle_anywhere(question, is_own=is_own)
    if obstacle is None:
        # The file of a run on a saved model may hold a head of ours in place of the model's own last layers.
        ways = ([True] if is_own else []) + ([False] if question.weights not in OF_NOBODY else [])
        obstacles = [_obstacle_on_the_way(question, to_last_layer=to_last_layer) for to_last_layer in ways]
        if None in obstacles:
            return HeadChoice("keep", ways[obstacles.index(None)], _reason_to_keep(question))
        obstacle = obstacles[0]
    if asked == "keep":
        raise ConfigError(f"model.head is keep, but {obstacle}; use --set model.head=replace")
    return HeadChoice(reason=f"the last layer is new: {obstacle}")


def _reason_to_keep(question: HeadQuestion) -> str:
    names = "and of the same names" if question.class_names_of_weights else "and its file does not name its classes"
    what = "1 number for two classes" if question.task == "binary" else f"{question.num_logits} classes"
    source = question.config.backbone if question.weights in OF_NOBODY else question.weights
    return f"the last layer of {source} is kept: it has {what}, as the dataset, {names}"


def _obstacle_anywhere(question: HeadQuestion, *, is_own: bool) -> str | None:
    """Of the settings and the classes, whatever the file holds."""
    config = question.config
    if question.obstacle is not None:
        return question.obstacle
    if question.weights == "none":
        return "model.weights is none, so that nothing is started from"
    if config.features_at is not None:
        return f"model.features_at is {config.features_at}, whose output no saved last layer was trained on"
    if not is_own and question.weights in OF_NOBODY:
        return f"the weights ({question.weights}) are those of a backbone, not of a classifier of yours"
    theirs = question.class_names_of_weights
    if theirs is not None and theirs != question.class_names:
        return _difference(theirs, question.class_names)
    return None


def _difference(theirs: list[str], ours: list[str]) -> str:
    if len(theirs) != len(ours):
        return f"the weights are of {len(theirs)} classes, and the dataset has {len(ours)}"
    first = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f"class {first} of the weights is called {theirs[first]!r}, and that of the dataset {ours[first]!r}"


def _obstacle_on_the_way(question: HeadQuestion, *, to_last_layer: bool) -> str | None:
    obstacle = _obstacle_in_model(question) if to_last_layer else None
    if obstacle is not None or question.weights in OF_NOBODY:
        return obstacle
    try:
        return _obstacle_in_file(question, to_last_layer=to_last_layer)
    except ModelError as e:
        if not to_last_layer:
            raise
        return str(e).partition(";")[0]


def _obstacle_in_model(question: HeadQuestion) -> str | None:
    """Of the last layer of a saved model, and of the layers before it."""
    config = question.config
    name = config.backbone
    last = saved_model.last_layer_of(name)
    if last is None:
        return f"{name} does not end with a dense layer with softmax, sigmoid or no activation"
    if last.num_outputs != question.num_logits:
        return f"{name} answers with {_counted(last.num_outputs)}, and {_needed(question)}"
    wrong = "softmax" if question.task in ("binary", "multi_label") else "sigmoid"
    if last.activation == wrong:
        return f"{name} ends with {wrong}, and this is a {question.task} model"
    if config.hidden_units:
        return f"model.hidden_units is {config.hidden_units}, layers that {name} does not have"
    shape = (question.image_size_px, question.image_size_px, 3)
    try:
        with variables_without_memory():
            find_backbone(name, config.pixels, to_last_layer=True).build(shape)
    except ModelError as e:
        return str(e).partition(";")[0]
    return None


def _obstacle_in_file(question: HeadQuestion, *, to_last_layer: bool) -> str | None:
    """Of what a weight file has beside the backbone."""
    with variables_without_memory(), open_weight_file(pathlib.Path(question.weights)) as arrays:
        classifier = build_configured(
            question.config,
            task=question.task,
            num_classes=len(question.class_names),
            image_size_px=question.image_size_px,
            to_last_layer=to_last_layer,
        )
        found = match(backbone_of(classifier), arrays, file=question.weights, backbone=question.config.backbone)
        if match_head(found.left_over, head_layers_of(classifier)) is not None:
            return None
    if not found.left_over:
        return f"{question.weights} has no layer behind the backbone"
    sizes = ", ".join(f"{array.name} {list(array.shape)}" for array in found.left_over[:3])
    return f"what {question.weights} has behind the backbone ({sizes}) does not fit, since {_needed(question)}"


def _counted(num: int) -> str:
    return f"{num} number{'s'[: num != 1]}"


def _needed(question: HeadQuestion) -> str:
    return f"the {len(question.class_names)} classes of this {question.task} model need {_counted(question.num_logits)}"
