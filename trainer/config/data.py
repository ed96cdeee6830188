"""The sections `data` and `augment`: the input and its random changes."""

from typing import Annotated, Literal

import pydantic

from trainer.config.section import NonNegative, PathText, Positive, Section


class DataConfig(Section):
    """The dataset, and how an image becomes the model's input."""

    path: PathText | None = pydantic.Field(None, description="prepared dataset, or a folder with one folder per class")
    resize: Literal["crop", "squash"] = pydantic.Field(
        "crop", description="crop: the largest centred square, then resized; squash: the whole image, resized"
    )
    sampling: Literal["uniform", "class_balanced", "weighted"] = pydantic.Field(
        "uniform",
        description="uniform: every example once an epoch; class_balanced: every class equally often; weighted: in "
        "proportion to the weights of the examples",
    )
    run_length: Positive = pydantic.Field(
        1, description="shuffle runs of so many neighbouring records, for storage that wants long reads"
    )
    last_batch: Literal["mask", "drop"] = pydantic.Field(
        "mask", description="mask: fill the last training batch up with examples of weight zero; drop: leave it out"
    )
    scaled_decoding: bool = pydantic.Field(
        True, description="decode random training crops of large JPEGs at 1/2, 1/4 or 1/8 of the size"
    )
    cache: Literal["auto", "off", "memory", "disk"] = pydantic.Field(
        "auto",
        description="keep decoded and resized images; auto: where no random crop makes each one new, in memory or on "
        "disk as they fit",
    )
    cache_dir: PathText | None = pydantic.Field(None, description="for cache=disk; null: beside the dataset")
    ram_budget_gib: Annotated[float, pydantic.Field(gt=0)] | None = pydantic.Field(
        None, description="for the input pipeline and its cache; null: half of what is free at the start"
    )
    num_parallel_reads: NonNegative = pydantic.Field(0, description="threads of the input pipeline; 0: all cores")


class AugmentConfig(Section):
    """Random changes of training images, keyed by (seed, epoch, example). A preset sets what is null."""

    preset: Literal["none", "light", "medium", "strong"] = pydantic.Field(
        "none", description="light: a mild random crop; medium, strong: see the README for what each sets"
    )
    min_crop_area: Annotated[float, pydantic.Field(gt=0, le=1)] | None = pydantic.Field(
        None, description="least share of the area that a random crop keeps; 1: no random crop"
    )
    flip: bool | None = pydantic.Field(None, description="mirror left and right at random")
    rotation_degrees: Annotated[float, pydantic.Field(ge=0, le=180)] | None = pydantic.Field(
        None, description="turn by a random angle of up to so much either way; 0: none"
    )
    shift: Annotated[float, pydantic.Field(ge=0, le=0.5)] | None = pydantic.Field(
        None, description="move along each axis by up to this share of the side at random; 0: none"
    )
    zoom: Annotated[float, pydantic.Field(ge=0, le=0.5)] | None = pydantic.Field(
        None, description="zoom by a random factor, as in 0.2 for 0.8 to 1.2; 0: none"
    )
    color_jitter: Annotated[float, pydantic.Field(ge=0, le=1)] | None = pydantic.Field(
        None, description="strength of random brightness, contrast and saturation; 0: none"
    )
    randaugment_layers: Annotated[int, pydantic.Field(ge=0, le=4)] | None = pydantic.Field(
        None, description="random operations on each image, one after the other"
    )
    randaugment_magnitude: Annotated[float, pydantic.Field(ge=0, le=10)] | None = None
    erasing: Annotated[float, pydantic.Field(ge=0, le=1)] | None = pydantic.Field(
        None, description="probability that a random rectangle is painted over"
    )
    mixup_alpha: Annotated[float, pydantic.Field(ge=0)] | None = pydantic.Field(
        None, description="mixup: parameter of its Beta distribution; 0: none"
    )
    cutmix_alpha: Annotated[float, pydantic.Field(ge=0)] | None = pydantic.Field(
        None, description="CutMix: parameter of its Beta distribution; 0: none; with mixup, each pair gets one of them"
    )
    progressive_sizes_px: list[Annotated[int, pydantic.Field(ge=8, le=2048)]] | None = pydantic.Field(
        None, description="sides of the training images, over equal parts of the run; the last is the model's"
    )
