"""Send one request to a server's REST API, and turn what goes wrong into this project's errors."""

from typing import Any

import httpx

from trainer.errors import ArtifactError, TrainerError, UsageError


def ask(http: httpx.Client, method: str, url: str, body: bytes | None = None) -> Any:
    """Return the JSON of an answer.

    Raises:
        ArtifactError: no server answers, or it lacks the model (404).
        UsageError: it refuses the request, with its reason.
        TrainerError: it fails.
    """
    try:
        response = http.request(method, url, content=body)
    except httpx.TransportError as e:
        raise no_answer(url, str(e) or type(e).__name__) from e
    try:
        answer = response.json()
    except ValueError:
        answer = {"error": response.text[:200]}
    if response.is_success:
        return answer
    reason = answer.get("error", answer) if isinstance(answer, dict) else answer
    message = f"{url} answered {response.status_code}: {reason}"
    if response.status_code == httpx.codes.NOT_FOUND:
        raise ArtifactError(message)
    raise UsageError(message) if response.is_client_error else TrainerError(message)


def no_answer(address: str, reason: str) -> ArtifactError:
    """Return the error of a server that does not answer."""
    return ArtifactError(f"no server answers at {address} ({reason}); start one with: trainer serve EXPORT")
