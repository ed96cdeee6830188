"""The client against a real server, and against none."""

import io
import pathlib
import socket

import PIL.Image
import pytest
from brightness_export import grey_pixels, jpeg

from export.client_images import read_client_images
from serving.client import Client, predict_images_of_files, split_url
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


def test_more_images_than_fit_one_request_are_sent_in_several(
    server_url: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{level}.jpg" for level in (255, 0, 128, 250, 5)]
    for path in paths:
        path.write_bytes(jpeg(int(path.stem)))
    monkeypatch.setattr("serving.client._MAX_BATCH_BYTES", 2 * len(jpeg(0)))
    labels = [p.label for p in predict_images_of_files(server_url, paths)]
    assert labels == ["bright", "dark", "medium", "bright", "dark"]


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
        pytest.raises(UsageError, match="answered 400: input 'images' of signature 'images' has shape"),
    ):
        client.predict_images(grey_pixels(0)[:, 1:])
    with Client(server_url, "nope") as client, pytest.raises(ArtifactError, match="answered 404: Servable not found"):
        client.predict_image_bytes([jpeg(1)])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:1", ("http://h:1", None)),
        ("http://h:1/", ("http://h:1", None)),
        ("http://h:1/v1/models/a%20b/versions/3", ("http://h:1", "a b")),
        ("https://h/prefix/v1/models/m:predict", ("https://h/prefix", "m")),
    ],
)
def test_addresses_are_split_into_server_and_model(url: str, expected: tuple[str, str | None]) -> None:
    assert split_url(url) == expected


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://h/some/page", "http://h:x"])
def test_an_address_that_is_none_is_wrong_usage(url: str) -> None:
    with pytest.raises(UsageError, match="address"):
        split_url(url)


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
