"""Answer grpc.health.v1: SERVING once all models are ready, NOT_SERVING while they load and once the server stops."""

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.models.model import Models

NAME: Final = "grpc.health.v1.Health"
# How soon a watching client learns of a change.
_POLL_SECS: Final = 0.2


class Health(health_pb2_grpc.HealthServicer):
    """The health of a server ("") and of its `services` by name, which is the same."""

    def __init__(self, models: Models, services: Collection[str]) -> None:
        self._models = models
        self._services = {"", *services}
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Answer NOT_SERVING from now on, and end the calls that watch."""
        self._stopped.set()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  gRPC names it
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        told = None
        while True:
            stopped, status = self._stopped.is_set(), self._status(request.service)
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            if stopped:
                return
            try:
                await asyncio.wait_for(self._stopped.wait(), _POLL_SECS)
            except TimeoutError:
                continue

    def _status(self, service: str) -> Any:
        if service not in self._services:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if self._stopped.is_set() or not self._models.is_ready:
            return health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse.SERVING
