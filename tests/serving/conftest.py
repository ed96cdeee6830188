"""A real export in miniature, and a real server over it."""

import pathlib
import shutil
from collections.abc import Iterator

import grpc
import httpx
import pytest
from brightness_export import brightness_signature, save_brightness_model
from half_plus_two import save_half_plus_two
from running_server import running_rpc, running_server

from serving.models.model import Models
from trainer.system import tf_runtime


@pytest.fixture(scope="session")
def export_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """EXPORT with versions 9 and 10 of the model `brightness`, which names the brightness of an image."""
    tf_runtime.configure()
    directory = tmp_path_factory.mktemp("serving") / "export"
    base_path = directory / "saved_model" / "brightness"
    save_brightness_model(base_path / "9")
    shutil.copytree(base_path / "9", base_path / "10")
    (base_path / "not-a-version").mkdir()
    brightness_signature().save(directory)
    return directory


@pytest.fixture(scope="session")
def brightness(export_dir: pathlib.Path) -> Models:
    """The model of the export, every version loaded, batched as by the command."""
    from serving.batching.choose_queues import choose_queues
    from serving.models.model import Model
    from serving.models.servable import Serving

    base_path = export_dir / "saved_model" / "brightness"
    model = Model(
        name="brightness",
        base_path=base_path,
        versions="all",
        labels={"canary": 9},
        serving=Serving(make_queue=choose_queues(is_export=True)),
    )
    model.load()
    return Models(model)


@pytest.fixture(scope="session")
def server_url(brightness: Models) -> Iterator[str]:
    """The address of a real uvicorn server over it."""
    from serving.rest.rest_server import build_app

    with running_server(build_app(brightness, max_body_bytes=1_000_000)) as url:
        yield url


@pytest.fixture(scope="session")
def brightness_rpc(brightness: Models) -> Iterator[grpc.Channel]:
    """A channel to a gRPC server over it, with the same limit."""
    with running_rpc(brightness, max_body_bytes=1_000_000) as (target, _), grpc.insecure_channel(target) as channel:
        yield channel


@pytest.fixture(scope="session")
def http(server_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server_url, timeout=600) as client:
        yield client


@pytest.fixture(scope="session")
def half_plus_two_path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A base path with the one version 123 of TensorFlow Serving's test model."""
    tf_runtime.configure()
    base_path = tmp_path_factory.mktemp("plain") / "half_plus_two"
    save_half_plus_two(base_path / "00000123")
    return base_path


@pytest.fixture(scope="session")
def half_plus_two_models(half_plus_two_path: pathlib.Path) -> Models:
    """It, loaded without batching, as TensorFlow Serving is unless it is asked for it."""
    from serving.models.model import Model

    model = Model(name="half_plus_two", base_path=half_plus_two_path)
    model.load()
    return Models(model)


@pytest.fixture(scope="session")
def half_plus_two(half_plus_two_models: Models) -> Iterator[httpx.Client]:
    """A client of a REST server over it."""
    from serving.rest.rest_server import build_app

    with running_server(build_app(half_plus_two_models)) as url, httpx.Client(base_url=url, timeout=600) as client:
        yield client


@pytest.fixture(scope="session")
def half_plus_two_rpc(half_plus_two_models: Models) -> Iterator[grpc.Channel]:
    """A channel to a gRPC server over it."""
    with running_rpc(half_plus_two_models) as (target, _), grpc.insecure_channel(target) as channel:
        yield channel
