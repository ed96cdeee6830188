"""What `trainer predict` answers, whatever it asked; light, so that asking a server needs no TensorFlow here."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pydantic


class ClassProbability(pydantic.BaseModel):
    """One class of an answer; `label` is null where a server told the name of the best class alone."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    class_id: int
    label: str | None
    probability: float


class ImagePrediction(pydantic.BaseModel):
    """`classes`: the most probable first."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    image: str
    classes: list[ClassProbability]


class ServedPrediction(Protocol):
    """What a server answers for one image; `label` and `class_id` are those of the most probable class."""

    @property
    def label(self) -> str: ...

    @property
    def class_id(self) -> int: ...

    @property
    def probabilities(self) -> Sequence[float]: ...


# From the address of a server and image files to one answer a file.
ServerPredict = Callable[[str, Sequence[pathlib.Path]], Sequence[ServedPrediction]]


def most_probable(
    probabilities: npt.NDArray[np.floating], names: Sequence[str | None], top: int
) -> list[ClassProbability]:
    """The `top` classes of one answer [num_classes], the most probable first, equal ones by class."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [ClassProbability(class_id=int(i), label=names[i], probability=float(probabilities[i])) for i in order]


def predict_on_server(
    server_predict: ServerPredict, url: str, paths: Sequence[pathlib.Path], top: int
) -> list[ImagePrediction]:
    """Asks the server at `url`."""
    predictions = []
    for path, served in zip(paths, server_predict(url, paths), strict=True):
        names: list[str | None] = [None] * len(served.probabilities)
        names[served.class_id] = served.label
        classes = most_probable(np.asarray(served.probabilities), names, top)
        predictions.append(ImagePrediction(image=str(path), classes=classes))
    return predictions
