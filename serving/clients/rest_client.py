"""A client of TensorFlow Serving's REST API; works with `trainer serve` and with TensorFlow Serving itself."""

import base64
import dataclasses
import json
import math
import pathlib
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import httpx
import numpy as np

from export.files.signature import (
    CLASS_ID,
    LABEL,
    NO_CLASS,
    PREDICTED,
    PROBABILITIES,
    SIGNATURE_IMAGES,
    STATUS,
    STATUS_OK,
)
from export.prediction.predictions import describe_status
from export.runtime.client_images import read_client_images
from serving.clients.ask import ask
from serving.protocol import limits
from serving.protocol.address import parse_address
from trainer.errors import ArtifactError, UsageError

DEFAULT_TIMEOUT_SECS = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """The model's answer for one image.

    Attributes:
        label, class_id: of the most probable class; empty and -1 if there is an error.
        probabilities: in the order of the classes.
        predicted: for multi-label, whether each class is predicted.
        error: why there is no answer, as the end of a sentence about the image.
    """

    label: str
    class_id: int
    probabilities: list[float]
    predicted: list[bool] | None = None
    error: str | None = None

    @classmethod
    def of_error(cls, error: str) -> "Prediction":
        return cls(label="", class_id=NO_CLASS, probabilities=[], error=error)

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> "Prediction":
        """Read a row of an answer. Raises KeyError if an output is missing."""
        # Models exported by other tools may have no status.
        status = row.get(STATUS, STATUS_OK)
        if status == STATUS_OK and not all(map(math.isfinite, row[PROBABILITIES])):
            return cls.of_error("has an answer that is not a number (NaN or infinite)")
        return cls(
            label=row[LABEL],
            class_id=row[CLASS_ID],
            probabilities=row[PROBABILITIES],
            predicted=row.get(PREDICTED),
            error=None if status == STATUS_OK else describe_status(status),
        )


class Client:
    """A client of one model of one server. Use it as a context manager, or `close` it.

    Any number of images may be given: they are sent in requests within `serving.protocol.limits`, or smaller ones if
    the server reports a smaller limit.

    Every method raises ArtifactError if the server does not answer or lacks the model, UsageError if it refuses the
    input (with its reason), TrainerError if it fails.
    """

    def __init__(
        self,
        base_url: str,
        model_name: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout_secs: float = DEFAULT_TIMEOUT_SECS,
    ) -> None:
        """Create a client for `base_url`, such as "http://127.0.0.1:8501".

        Without `version` and `label`, the newest version answers.
        """
        assert version is None or label is None
        self.base_url = base_url.rstrip("/")
        self.model_name = model_name
        self._path = f"/v1/models/{urllib.parse.quote(model_name, safe='')}"
        if version is not None:
            self._path += f"/versions/{version}"
        if label is not None:
            self._path += f"/labels/{urllib.parse.quote(label, safe='')}"
        self._max_batch_size = limits.cluster_batch_size()
        self._http = httpx.Client(timeout=timeout_secs)

    def predict_image_bytes(self, images: Sequence[bytes]) -> list[Prediction]:
        """Classify the bytes of image files; one that the model's graph refuses gets an `error` with the reason.

        `predict_images_of_files` re-encodes such files before sending them.
        """
        return self._predict(f'{{"b64": "{base64.b64encode(image).decode()}"}}' for image in images)

    def predict_images(self, images: np.ndarray[Any, Any]) -> list[Prediction]:
        """Classify RGB pixels, [batch, size, size, 3], 0 to 255, already at the model's size."""
        return self._predict((json.dumps(image.tolist()) for image in images), SIGNATURE_IMAGES)

    def status(self) -> Any:
        """Return the GetModelStatusResponse as JSON: `model_version_status`, a list."""
        return self._request("GET", self._path)

    def metadata(self) -> Any:
        """Return the GetModelMetadataResponse as JSON: `model_spec`, and `metadata` with the signatures."""
        return self._request("GET", f"{self._path}/metadata")

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _predict(self, instances: Iterable[str], signature_name: str | None = None) -> list[Prediction]:
        """Send `instances`, each as JSON text, in batches."""
        return [prediction for batch in self._batches(instances) for prediction in self._ask(batch, signature_name)]

    def _batches(self, instances: Iterable[str]) -> Iterator[list[str]]:
        batch: list[str] = []
        num_bytes = 0
        for instance in instances:
            is_full = len(batch) >= self._max_batch_size or num_bytes + len(instance) > limits.CLIENT_REQUEST_BYTES
            if batch and is_full:
                yield batch
                batch, num_bytes = [], 0
            batch.append(instance)
            num_bytes += len(instance)
        if batch:
            yield batch

    def _ask(self, instances: list[str], signature_name: str | None) -> list[Prediction]:
        signature = "" if signature_name is None else f'"signature_name": {json.dumps(signature_name)}, '
        body = f'{{{signature}"instances": [{", ".join(instances)}]}}'
        try:
            answer = self._request("POST", f"{self._path}:predict", body.encode())
        except UsageError as e:
            told = limits.find_told_limit(str(e))
            if told is None or not 0 < told < len(instances):
                raise
            self._max_batch_size = told
            return self._predict(instances, signature_name)
        predictions = self._read_predictions(answer)
        if len(predictions) != len(instances):
            raise ArtifactError(
                f"the model {self.model_name!r} at {self.base_url} answered {len(predictions)} predictions to "
                f"{len(instances)} images; expected one for each"
            )
        return predictions

    def _read_predictions(self, answer: Any) -> list[Prediction]:
        try:
            return [Prediction.of_row(row) for row in answer["predictions"]]
        except (KeyError, TypeError, AttributeError):
            raise ArtifactError(
                f"the model {self.model_name!r} at {self.base_url} is not a classifier of this kind: it answered "
                f"{json.dumps(answer)[:200]}; expected {PROBABILITIES}, {CLASS_ID} and {LABEL} for each image"
            ) from None

    def _request(self, method: str, path: str, body: bytes | None = None) -> Any:
        return ask(self._http, method, self.base_url + path, body)


def predict_images_of_files(url: str, paths: Sequence[pathlib.Path], model_name: str | None = None) -> list[Prediction]:
    """Classify image files on a server, in order; files that the graph might misread are re-encoded.

    A file that is not an image is not sent, and one that the server cannot decode does not fail the others: see
    `Prediction.error`.

    Args:
        url: "http://host:port", or with a model, "http://host:port/v1/models/NAME", and its version or label.
        paths: the image files.
        model_name: None takes it from the URL, or asks `trainer serve` (TensorFlow Serving does not list its models).

    Raises what `Client` does, and UsageError for a file that cannot be read.
    """
    address = parse_address(url)
    images = read_client_images(paths)
    name = model_name or address.model or _only_model(address.server)
    sent = [image.content for image in images if image.error is None]
    with Client(address.server, name, version=address.version, label=address.label) as client:
        answers = iter(client.predict_image_bytes(sent))
    return [next(answers) if image.error is None else Prediction.of_error(image.error) for image in images]


def _only_model(base_url: str) -> str:
    with httpx.Client(timeout=DEFAULT_TIMEOUT_SECS) as http:
        try:
            names = ask(http, "GET", f"{base_url}/readyz")["models"]
        except (ArtifactError, KeyError, TypeError) as e:
            if isinstance(e, ArtifactError) and isinstance(e.__cause__, httpx.TransportError):
                raise
            names = []
    if len(names) != 1:
        raise ArtifactError(
            f"{base_url} does not say which model to use (it has {', '.join(map(str, names)) or 'none'}); "
            f"give the name in the address: {base_url}/v1/models/NAME"
        )
    return str(names[0])
