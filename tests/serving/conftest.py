"""A real export in miniature, and a real server over it."""

import pathlib
import shutil
from collections.abc import Iterator

import httpx
import pytest
from brightness_export import brightness_signature, save_brightness_model
from half_plus_two import save_half_plus_two
from running_server import running_server

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
def server_url(export_dir: pathlib.Path) -> Iterator[str]:
    """The address of a real uvicorn server over the export, every version loaded, batched as by the command."""
    from serving.batching.choose_queues import choose_queues
    from serving.models.model import Model, Models
    from serving.models.servable import Serving
    from serving.rest.rest_server import build_app

    base_path = export_dir / "saved_model" / "brightness"
    model = Model(
        name="brightness",
        base_path=base_path,
        versions="all",
        serving=Serving(make_queue=choose_queues(is_export=True)),
    )
    model.load()
    with running_server(build_app(Models(model), max_body_bytes=1_000_000)) as url:
        yield url


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
def half_plus_two(half_plus_two_path: pathlib.Path) -> Iterator[httpx.Client]:
    """A client of a server over it, without batching, as TensorFlow Serving is unless it is asked for it."""
    from serving.models.model import Model, Models
    from serving.rest.rest_server import build_app

    model = Model(name="half_plus_two", base_path=half_plus_two_path)
    model.load()
    with running_server(build_app(Models(model))) as url, httpx.Client(base_url=url, timeout=600) as client:
        yield client
