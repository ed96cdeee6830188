"""The client against a real server, and against none."""

import io
import json
import pathlib
import socket

import httpx
import PIL.Image
import pytest
from brightness_export import grey_pixels, jpeg
from running_server import running_server

from export.runtime.client_images import read_client_images
from serving.clients.rest_client import Client, Prediction, predict_images_of_files
from serving.protocol import limits
from serving.protocol.address import ModelAddress, parse_address
from trainer.errors import ArtifactError, UsageError


def test_images_are_classified_from_bytes_and_from_pixels(server_url: str) -> None:
    with Client(server_url, "brightness") as client:
        from_bytes = client.predict_image_bytes([jpeg(0), jpeg(255)])
        from_pixels = client.predict_images(grey_pixels(0, 255))
    assert [p.label for p in from_bytes] == ["dark", "bright"]
    assert [p.class_id for p in from_pixels] == [0, 2]
    assert from_bytes[0].probabilities == pytest.approx(from_pixels[0].probabilities, abs=1e-5)


def test_status_and_metadata(server_url: str) -> None:
    with Client(server_url + "/", "brightness", version=9) as client:
        assert client.status()["model_version_status"][0]["version"] == "9"
        assert client.metadata()["model_spec"]["version"] == "9"


def test_files_are_classified_in_order(server_url: str, tmp_path: pathlib.Path) -> None:
    paths = [tmp_path / f"{level}.jpg" for level in (255, 0, 128)]
    for path in paths:
        path.write_bytes(jpeg(int(path.stem)))
    for url in (server_url, f"{server_url}/v1/models/brightness", f"{server_url}/v1/models/brightness:predict"):
        assert [p.label for p in predict_images_of_files(url, paths)] == ["bright", "dark", "medium"]


def test_more_images_than_a_request_may_hold_are_sent_in_several(
    server_url: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = [0, 128, 255] * 12
    paths = [tmp_path / f"{index}.jpg" for index in range(len(levels))]
    for path, level in zip(paths, levels, strict=True):
        path.write_bytes(jpeg(level))
    expected = [{0: "dark", 128: "medium", 255: "bright"}[level] for level in levels]
    assert limits.cluster_batch_size() < len(levels)  # the server of this test refuses more
    assert [p.label for p in predict_images_of_files(server_url, paths)] == expected
    with Client(server_url, "brightness") as client:
        assert [p.label for p in client.predict_images(grey_pixels(*levels))] == expected

    monkeypatch.setattr(limits, "CLIENT_REQUEST_BYTES", 2 * len(jpeg(0)))
    assert [p.label for p in predict_images_of_files(server_url, paths[:5])] == expected[:5]


def test_a_smaller_limit_that_a_server_names_is_kept_to(export_dir: pathlib.Path) -> None:
    from serving.batching.requests import one_by_one
    from serving.models.model import Model, Models
    from serving.models.servable import Serving
    from serving.rest.rest_server import build_app

    model = Model(
        name="brightness",
        base_path=export_dir / "saved_model" / "brightness",
        serving=Serving(make_queue=one_by_one(max_batch_size=3)),
    )
    model.load()
    with running_server(build_app(Models(model))) as url, Client(url, "brightness") as client:
        assert [p.class_id for p in client.predict_images(grey_pixels(*[0, 255] * 20))] == [0, 2] * 20
        metrics = httpx.get(f"{url}/monitoring/prometheus/metrics").text
    refused = [line for line in metrics.splitlines() if 'status="INVALID_ARGUMENT"' in line]
    assert [line.split()[-1] for line in refused] == ["1"]  # asked once, and not for every batch


def test_a_rotated_image_is_turned_upright_before_it_is_sent(server_url: str, tmp_path: pathlib.Path) -> None:
    # The model takes the mean of the whole, so what is seen here is that the server gets a PNG of another size.
    image = PIL.Image.new("RGB", (6, 4), "white")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "rotated.jpg", exif=exif)
    (sent,) = read_client_images([tmp_path / "rotated.jpg"])
    with PIL.Image.open(io.BytesIO(sent.content)) as turned:
        assert turned.size == (4, 6)
    assert predict_images_of_files(server_url, [tmp_path / "rotated.jpg"])[0].label == "bright"


def test_a_server_that_does_not_answer_is_an_artifact_error(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with Client(url, "brightness") as client, pytest.raises(ArtifactError, match=f"no server answers at {url}/v1/"):
        client.status()
    with pytest.raises(ArtifactError, match="start one with: trainer serve EXPORT"):
        predict_images_of_files(url, [])


def test_what_the_server_refuses_is_told_with_its_reason(server_url: str) -> None:
    with (
        Client(server_url, "brightness") as client,
        pytest.raises(UsageError, match=r"answered 400: .*input 'images' of signature 'images' has shape"),
    ):
        client.predict_images(grey_pixels(0)[..., 0])
    with Client(server_url, "nope") as client, pytest.raises(ArtifactError, match="answered 404: Servable not found"):
        client.predict_image_bytes([jpeg(1)])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:1", ModelAddress("http://h:1")),
        ("http://h:1/", ModelAddress("http://h:1")),
        ("http://h:1/v1/models/a%20b/versions/3", ModelAddress("http://h:1", "a b", version=3)),
        ("http://h:1/v1/models/m/labels/a%2Fb:predict", ModelAddress("http://h:1", "m", label="a/b")),
        ("http://h:1/v1/models/m/versions/7/metadata", ModelAddress("http://h:1", "m", version=7)),
        ("https://h/prefix/v1/models/m:predict", ModelAddress("https://h/prefix", "m")),
    ],
)
def test_addresses_are_split_into_server_model_and_version(url: str, expected: ModelAddress) -> None:
    assert parse_address(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h",
        "http://",
        "http://h/some/page",
        "http://h:x",
        "http://h/v1/models/m/versions/x",
        "http://h/v1/models/m/versions/",
        f"http://h/v1/models/m/versions/{2**63}",
        "http://h/v1/models/m/labels/a/versions/1",
        "http://h/v1/models/m/7",
        "http://h/v1/models/",
        "http://h/v1/models/m:classify",
        "http://h/v1/models/m?key=secret",
        "http://h/#m",
    ],
)
def test_an_address_that_is_none_is_wrong_usage(url: str) -> None:
    with pytest.raises(UsageError, match=r"address|names a version that no server has"):
        parse_address(url)


def test_the_version_or_label_in_an_address_is_the_one_that_is_asked(server_url: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "dark.jpg"
    path.write_bytes(jpeg(0))
    model = f"{server_url}/v1/models/brightness"
    assert predict_images_of_files(f"{model}/versions/9", [path])[0].label == "dark"
    with pytest.raises(ArtifactError, match=r"answered 404: Servable not found for request: Specific\(brightness, 7\)"):
        predict_images_of_files(f"{model}/versions/7", [path])
    with pytest.raises(UsageError, match="answered 400: Unrecognized servable version label: stable"):
        predict_images_of_files(f"{model}/labels/stable", [path])


def test_a_file_that_is_no_image_is_an_error_of_its_own(tmp_path: pathlib.Path, server_url: str) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "dark.jpg").write_bytes(jpeg(0))
    # TensorFlow reads no transparent WebP: it is sent as the picture on white.
    PIL.Image.new("RGBA", (8, 8), (1, 2, 3, 0)).save(tmp_path / "clear.webp")
    paths = [tmp_path / name for name in ("text.jpg", "dark.jpg", "clear.webp", "dark.jpg")]
    predictions = predict_images_of_files(server_url, paths)
    assert [p.label for p in predictions if p.error is None] == ["dark", "bright", "dark"]
    assert predictions[0].error is not None and "is not an image" in predictions[0].error
    with pytest.raises(UsageError, match=r"absent.jpg cannot be read"):
        predict_images_of_files(server_url, [tmp_path / "absent.jpg"])


def test_a_bad_image_among_bytes_has_an_error_and_no_label(server_url: str) -> None:
    with Client(server_url, "brightness") as client:
        dark, bad = client.predict_image_bytes([jpeg(0), b"no image"])
    assert (dark.label, dark.error) == ("dark", None)
    assert bad.error == "is not an image that the model reads (JPEG, PNG, GIF, BMP or WebP)"


def test_an_answer_that_is_not_a_number_is_an_error_of_its_image() -> None:
    # TensorFlow Serving writes it, as text that is no JSON and that Python's json reads.
    row = json.loads('{"label": "dark", "class_id": 0, "probabilities": [NaN, 0.5]}')
    answer = Prediction.of_row(row)
    assert (answer.label, answer.class_id, answer.probabilities) == ("", -1, [])
    assert answer.error is not None and "not a number" in answer.error


def test_what_a_server_warms_up_with_is_within_its_limit() -> None:
    from export.convert.to_saved_model import NUM_WARMUP_IMAGES

    assert limits.cluster_batch_size() >= NUM_WARMUP_IMAGES
