"""A version that is damaged, incomplete or answers otherwise than it was exported is refused before it is available."""

import json
import pathlib
import shutil
from collections.abc import Callable

import pytest
from brightness_export import CLASS_NAMES, grey_pixels, prove_brightness_model, save_brightness_model

from export.files.checksums import Checksums
from export.files.version_proof import CHECKSUMS_FILE, GOLDEN_FILE, WARMUP_FILE, VersionChecksums
from serving.models.golden_check import checked
from serving.models.manager import VersionManager
from serving.models.model import Models, Target
from serving.models.model_config import ModelConfig
from serving.models.servable import Serving
from serving.rest.rest_server import model_status
from trainer.system import tf_runtime

WEIGHTS = "variables/variables.data-00000-of-00001"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A version with its proof."""
    tf_runtime.configure()
    path = tmp_path_factory.mktemp("good") / "1"
    save_brightness_model(path)
    prove_brightness_model(path)
    return path


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The same weights, with two labels swapped."""
    path = tmp_path_factory.mktemp("swapped") / "1"
    save_brightness_model(path, class_names=[CLASS_NAMES[1], CLASS_NAMES[0], CLASS_NAMES[2]])
    return path


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The same labels, with another weight."""
    path = tmp_path_factory.mktemp("retrained") / "1"
    save_brightness_model(path, sharpness=15.0)
    return path


class Server:
    def __init__(self, base_path: pathlib.Path) -> None:
        self.told: list[str] = []
        self.manager = VersionManager(Models(), serving=checked(Serving(), tell=self.told.append), tell=lambda _: None)
        self.manager.start([ModelConfig("brightness", base_path)], poll_wait_secs=0)

    def status_of(self, version: int) -> dict[str, str]:
        body = json.loads(model_status(self.manager.models, Target("brightness", version)))
        (status,) = body["model_version_status"]
        return {"state": status["state"], **status["status"]}

    def label_of(self, level: int) -> bytes:
        with self.manager.models.use(Target("brightness")) as servable:
            label: bytes = servable.run("images", {"images": grey_pixels(level)})["label"][0]
            return label


@pytest.fixture(scope="module")
def server(good: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    base_path = tmp_path_factory.mktemp("served") / "brightness"
    shutil.copytree(good, base_path / "1")
    return Server(base_path)


def flip_a_byte_of_a_weight(version: pathlib.Path) -> None:
    content = bytearray((version / WEIGHTS).read_bytes())
    content[0] ^= 1
    (version / WEIGHTS).write_bytes(content)


def lose_the_warm_up_requests(version: pathlib.Path) -> None:
    (version / WARMUP_FILE).unlink()


def lose_one_warm_up_request(version: pathlib.Path) -> None:
    import tensorflow as tf

    path = str(version / WARMUP_FILE)
    records = list(tf.data.TFRecordDataset(path).as_numpy_iterator())
    with tf.io.TFRecordWriter(path) as writer:
        for record in records[1:]:
            writer.write(record)


def cut_the_warm_up_requests(version: pathlib.Path) -> None:
    content = (version / WARMUP_FILE).read_bytes()
    (version / WARMUP_FILE).write_bytes(content[:-5])


def lose_the_golden_answers(version: pathlib.Path) -> None:
    (version / GOLDEN_FILE).unlink()


def use(other: str) -> Callable[[pathlib.Path, pytest.FixtureRequest], None]:
    """Takes graph and weights of another version."""

    def change(version: pathlib.Path, request: pytest.FixtureRequest) -> None:
        shutil.copytree(request.getfixturevalue(other), version, dirs_exist_ok=True)

    return change


def rewrite_checksums(version: pathlib.Path) -> None:
    VersionChecksums.of(version).save(version)


@pytest.mark.parametrize("rewritten", [False, True], ids=["", "checksums-rewritten"])
@pytest.mark.parametrize(
    ("damage", "told", "told_if_rewritten"),
    [
        (flip_a_byte_of_a_weight, f"{WEIGHTS} of .* was changed", "could not load|differs by"),
        (use("retrained"), "was changed: SHA-256", "does not answer as it did when it was exported: a probability"),
        (use("swapped"), "was changed: SHA-256", "golden image 0 is 'medium' where 'dark' is expected"),
        (lose_the_warm_up_requests, f"{WARMUP_FILE} is missing", f"does not list {WARMUP_FILE}"),
        (lose_one_warm_up_request, f"{WARMUP_FILE} of .* was changed", "has 3 warm-up requests where .* says 4"),
        (
            cut_the_warm_up_requests,
            f"{WARMUP_FILE} of .* was changed",
            f"{WARMUP_FILE} is damaged .*verify your warmup",
        ),
        (lose_the_golden_answers, f"{GOLDEN_FILE} is missing", f"does not list {GOLDEN_FILE}"),
    ],
)
def test_a_damaged_version_stays_out_and_the_old_one_answers(
    good: pathlib.Path,
    server: Server,
    request: pytest.FixtureRequest,
    damage: Callable[..., None],
    told: str,
    told_if_rewritten: str,
    rewritten: bool,
) -> None:
    base_path = server.manager.models.get("brightness").servables[1].path.parent
    version = shutil.copytree(good, base_path / "2")
    try:
        damage(*((version, request) if damage.__name__ == "change" else (version,)))
        if rewritten:
            rewrite_checksums(version)
        server.manager.poll()
        status = server.status_of(2)
        assert status["state"] == "END"
        assert_matches(told_if_rewritten if rewritten else told, status["error_message"])
        assert status["error_code"] not in ("OK", 0)
        assert server.status_of(1)["state"] == "AVAILABLE"
        assert server.label_of(0) == b"dark"
    finally:
        shutil.rmtree(version)
        server.manager.poll()


def assert_matches(pattern: str, text: str) -> None:
    import re

    assert re.search(pattern, text), text


def test_a_good_version_is_served_under_any_number(good: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(good, tmp_path / "brightness" / "123")
    server = Server(tmp_path / "brightness")
    assert server.status_of(123) == {"state": "AVAILABLE", "error_code": "OK", "error_message": ""}
    assert server.told == []


def test_a_version_without_a_proof_is_served_with_one_note(retrained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = shutil.copytree(retrained, tmp_path / "brightness" / "1")
    server = Server(tmp_path / "brightness")
    assert server.status_of(1)["state"] == "AVAILABLE"
    assert server.told == [
        f"{path} brings no golden answers (they come with trainer export), so its answers are not checked"
    ]


def test_a_version_of_an_older_export_is_compared_with_the_checksums_of_that_export(
    retrained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    base_path = tmp_path / "export" / "saved_model" / "brightness"
    shutil.copytree(retrained, base_path / "1")
    shutil.copytree(retrained, base_path / "2")
    assert not (base_path / "2" / CHECKSUMS_FILE).exists()
    flip_a_byte_of_a_weight(base_path / "2")
    Checksums.of(tmp_path / "export").save(tmp_path / "export")
    (base_path / "2").rename(tmp_path / "2")
    server = Server(base_path)
    flip_a_byte_of_a_weight(tmp_path / "2")
    (tmp_path / "2").rename(base_path / "2")
    server.manager.poll()
    assert_matches(f"{WEIGHTS} of .* was changed.*checksums.json of the export", server.status_of(2)["error_message"])
