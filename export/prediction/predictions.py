"""The answer of `trainer predict`, whatever predicts; imports no TensorFlow, which a server's client does not need."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from export.files.read_file import StrictModel
from export.files.statuses import STATUS_IN_WORDS
from trainer.errors import TrainerError


class ClassProbability(StrictModel):
    """One class of an answer.

    Attributes:
        label: null if a server names only the best class.
        predicted: for multi-label, whether the probability reaches the class's threshold; null for others.
    """

    class_id: int
    label: str | None
    probability: float
    predicted: bool | None = None


class ImagePrediction(StrictModel):
    """The answer for an image.

    Attributes:
        classes: the most probable first, and all that are predicted; empty if there is an error.
        error: why there is no prediction.
    """

    image: str
    classes: list[ClassProbability]
    error: str | None = None


class ServedPrediction(Protocol):
    """A server's answer for one image; `label` and `class_id` are those of the most probable class.

    `error` says why there is no answer, and then the others are empty; `predicted` has a flag for each class of a
    multi-label model.
    """

    @property
    def label(self) -> str: ...

    @property
    def class_id(self) -> int: ...

    @property
    def probabilities(self) -> Sequence[float]: ...

    @property
    def predicted(self) -> Sequence[bool] | None: ...

    @property
    def error(self) -> str | None: ...


# Maps the address of a server and image files to one answer per file.
ServerPredict = Callable[[str, Sequence[pathlib.Path]], Sequence[ServedPrediction]]


def describe_status(status: str) -> str:
    """Describe a `status` other than ok, as the end of a sentence about the image."""
    return STATUS_IN_WORDS.get(status, f"has the status {status!r}")


def most_probable(
    probabilities: npt.NDArray[np.floating],
    names: Sequence[str | None],
    top: int,
    predicted: npt.NDArray[Any] | Sequence[bool] | None = None,
) -> list[ClassProbability]:
    """Return the `top` classes of one answer, [num_classes], and all that are `predicted`; ties by class id."""
    order = np.argsort(-probabilities, kind="stable")
    chosen = [i for place, i in enumerate(order) if place < top or (predicted is not None and predicted[i])]
    return [
        ClassProbability(
            class_id=int(i),
            label=names[i],
            probability=float(probabilities[i]),
            predicted=None if predicted is None else bool(predicted[i]),
        )
        for i in chosen
    ]


def predict_on_server(
    server_predict: ServerPredict, url: str, paths: Sequence[pathlib.Path], top: int
) -> list[ImagePrediction]:
    """Predict image files on the server at `url`."""
    predictions = []
    for path, served in zip(paths, server_predict(url, paths), strict=True):
        if served.error is not None:
            predictions.append(ImagePrediction(image=str(path), classes=[], error=served.error))
            continue
        names: list[str | None] = [None] * len(served.probabilities)
        names[served.class_id] = served.label
        classes = most_probable(np.asarray(served.probabilities), names, top, served.predicted)
        predictions.append(ImagePrediction(image=str(path), classes=classes))
    return predictions


def raise_on_errors(predictions: Sequence[ImagePrediction]) -> None:
    """Raise TrainerError if an image has no prediction; the first is named."""
    failed = [p for p in predictions if p.error is not None]
    if failed:
        others = f"; {len(failed)} of {len(predictions)} images have no prediction" if len(predictions) > 1 else ""
        raise TrainerError(f"{failed[0].image} {failed[0].error}{others}")
