"""The network."""

from typing import Annotated, Literal

import pydantic

from trainer.settings.section import Section


class ModelConfig(Section):
    """The network: a backbone, what is trained of it, and the head on top."""

    backbone: str = pydantic.Field(
        "efficientnet_lite0",
        description="name of a backbone (trainer backbones lists them), hub:PRESET of keras-hub, or a saved model of "
        "your own, path/to/model.keras",
    )
    weights: str = pydantic.Field(
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
    trainable: Literal["all", "head"] = pydantic.Field("all", description="all: fine-tune; head: frozen backbone")
    batch_norm: Literal["auto", "frozen", "per_replica", "synchronized"] = pydantic.Field(
        "auto",
        description="frozen: the statistics of the weights, inference mode; per_replica: of each replica's batch, "
        "averaged over the replicas; synchronized: of the whole global batch, without XLA; auto: frozen for pretrained "
        "weights, per_replica without",
    )
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = pydantic.Field(0.0, description="before the head")
