"""The section `model`: the network."""

import re
from typing import Annotated, Literal

import pydantic

from trainer.config.section import PathText, Positive, Section

_TRAINABLE = re.compile(r"all|head|top:[1-9]\d*|top:\d+(\.\d+)?%|(?:from|match):.+")


def check_trainable(value: str) -> str:
    """Return `value`; raise ValueError if it is not a valid `model.trainable`."""
    if not _TRAINABLE.fullmatch(value):
        raise ValueError(
            "should be all, head, top:3 (blocks), top:30% (of the layers with weights), from:LAYER (that one and all "
            "after it) or match:REGEX (layer names)"
        )
    if value.startswith("match:"):
        try:
            re.compile(value.removeprefix("match:"))
        except re.error as e:
            raise ValueError(f"should have a regular expression after match: ({e})") from None
    return value


Trainable = Annotated[str, pydantic.AfterValidator(check_trainable)]


class ModelConfig(Section):
    """The backbone, the part of it that is trained, and the head."""

    backbone: PathText = pydantic.Field(
        "efficientnet_lite0",
        description="name of a backbone (trainer backbones lists them), hub:PRESET of keras-hub, or a saved model of "
        "your own, path/to/model.keras",
    )
    weights: PathText = pydantic.Field(
        "auto",
        description="bundled (that come with the backbone), imagenet, none, a weight file, a run, or auto: bundled "
        "where the backbone has them",
    )
    pixels: Literal["0-255", "0-1", "-1-1", "caffe", "torch"] | None = pydantic.Field(
        None,
        description="what a saved model of your own was trained on; caffe: BGR less ImageNet's mean; torch: mean 0, "
        "deviation 1; for no other backbone",
    )
    image_size_px: Annotated[int, pydantic.Field(ge=8, le=2048)] | None = pydantic.Field(
        None, description="side of the square input; null: the backbone's own"
    )
    trainable: Trainable = pydantic.Field(
        "all",
        description="what is trained beside the head. all: fine-tune; head: nothing; top:3: the last three blocks of "
        "the backbone; top:30%: its last layers; from:LAYER: that layer and all after it; match:REGEX: "
        "the layers so called",
    )
    features_at: str | None = pydantic.Field(
        None, description="the layer whose output the head gets, for images unlike the pretraining; null: the last"
    )
    batch_norm: Literal["auto", "frozen", "frozen_statistics", "per_replica", "synchronized"] = pydantic.Field(
        "auto",
        description="frozen: as the weights have it, inference mode; frozen_statistics: the statistics of the "
        "weights, with scale and offset trained; per_replica: of each replica's batch, averaged over the replicas; "
        "synchronized: of the whole global batch, without XLA; auto: frozen for pretrained weights, per_replica "
        "without. Layers that are not trained keep theirs",
    )
    head: Literal["auto", "keep", "replace"] = pydantic.Field(
        "auto",
        description="keep: go on with the last layer of your saved model, weight file or run; replace: a new one; "
        "auto: keep where it is of the same classes. The plan says which, and why",
    )
    pooling: Literal["average", "max", "flatten"] = pydantic.Field(
        "average", description="of the backbone's output over the image; flatten: none, for a hidden layer to see all"
    )
    hidden_units: list[Positive] = pydantic.Field([], description="sizes of hidden layers of the head, with ReLU")
    hidden_batch_norm: bool = pydantic.Field(False, description="batch normalisation in each hidden layer")
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = pydantic.Field(
        0.0, description="after each hidden layer of the head; without one, before the last layer"
    )
