"""The section `features`: the output of frozen layers, computed once."""

from typing import Annotated, Literal

import pydantic

from trainer.config.section import PathText, Positive, Section


class FeaturesConfig(Section):
    """The features of frozen layers: whether they are computed once, by which runtime, and where they are stored."""

    cache: Literal["auto", "on", "off"] = pydantic.Field(
        "auto",
        description="keep what the frozen first layers give, and train the rest on it; auto: where that changes no "
        "result and pays; on: an error where it would change one",
    )
    dir: PathText | None = pydantic.Field(None, description="where features are kept; null: beside the dataset")
    budget_gib: Annotated[float, pydantic.Field(gt=0)] = pydantic.Field(
        20.0, description="of all features in that place; those that were not used for longest make room"
    )
    runtime: Literal["auto", "tensorflow", "onnxruntime", "litert"] = pydantic.Field(
        "auto",
        description="what computes them; auto: TensorFlow on GPUs; on CPUs ONNX Runtime, then LiteRT, then TensorFlow, "
        "the first that gives Keras's numbers to 1e-4",
    )
    views: Positive | None = pydantic.Field(
        None,
        description="with random changes of the images: keep this many changed views of each, used in turn; null: do "
        "not cache then",
    )
