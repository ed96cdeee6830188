"""Versions come and go while requests are answered: by one version or the other, and rightly."""

import concurrent.futures
import gc
import json
import pathlib
import shutil
import threading
from collections.abc import Callable

import numpy as np
import pytest
from fake_versions import FakeModels, write_version

from serving.models.manager import VersionManager
from serving.models.model import Models, Target
from serving.models.model_config import ModelConfig
from serving.models.servable import State
from serving.models.version_policy import ALL, VersionPolicy, find_unneeded
from serving.protocol.status import Code, RequestError
from serving.rest.rest_server import model_status
from tests.complete import IS_COMPLETE
from trainer.errors import ArtifactError


class Server:
    """A manager of one model `m` over `base_path`, its messages, and what it loads."""

    def __init__(self, base_path: pathlib.Path) -> None:
        self.base_path = base_path
        self.loads = FakeModels()
        self.told: list[str] = []
        self.manager = VersionManager(Models(), serving=self.loads.serving, tell=self.told.append)

    @property
    def models(self) -> Models:
        return self.manager.models

    def start(self, *, policy: VersionPolicy | None = None, labels: dict[str, int] | None = None) -> "Server":
        self.manager.start([self.config(policy=policy, labels=labels)], poll_wait_secs=0)
        return self

    def config(self, *, policy: VersionPolicy | None = None, labels: dict[str, int] | None = None) -> ModelConfig:
        return ModelConfig("m", self.base_path, policy or VersionPolicy(), labels or {})

    def poll(self) -> None:
        self.manager.poll()
        self.manager.wait_until_drained()

    def answer(self, x: float = 0, **target: object) -> float:
        with self.models.use(Target("m", **target)) as servable:
            return float(servable.run(None, {"x": np.array([x], np.float32)})["y"][0])

    def states(self) -> dict[int, tuple[str, str]]:
        """State and error of each version, as the REST status shows them."""
        statuses = json.loads(model_status(self.models, Target("m")))["model_version_status"]
        return {int(s["version"]): (s["state"], s["status"]["error_message"]) for s in statuses}


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Server:
    return Server(tmp_path / "m")


def test_a_new_version_takes_the_place_of_the_old_one_and_its_removal_brings_that_back(server: Server) -> None:
    write_version(server.base_path, 3)
    server.start()
    assert server.answer(x=10) == 13
    write_version(server.base_path, 4)
    assert server.answer() == 3
    server.poll()
    assert server.answer() == 4
    assert server.states() == {3: ("END", ""), 4: ("AVAILABLE", "")}
    shutil.rmtree(server.base_path / "4")
    server.poll()
    assert server.answer() == 3
    assert server.states() == {3: ("AVAILABLE", ""), 4: ("END", "")}


def test_the_model_of_a_version_that_was_drained_is_no_longer_in_memory(server: Server) -> None:
    write_version(server.base_path, 3)
    server.start()
    write_version(server.base_path, 4)
    server.poll()
    assert server.loads.in_memory() == [4]


def test_the_model_of_a_version_that_was_refused_is_no_longer_in_memory(server: Server) -> None:
    def refuse(path: pathlib.Path, runtime: object) -> None:
        raise RequestError(Code.FAILED_PRECONDITION, "it answers wrongly")

    write_version(server.base_path, 3)
    server.start()
    server.manager._serving = server.loads.serving._replace(check=refuse)
    write_version(server.base_path, 4)
    server.poll()
    gc.collect()
    assert server.states()[4] == ("END", "it answers wrongly")
    assert server.loads.in_memory() == [3]


def test_a_bad_version_stays_out_until_its_files_change(server: Server) -> None:
    write_version(server.base_path, 3)
    server.start()
    bad = write_version(server.base_path, 4, "bad")
    server.poll()
    assert server.answer() == 3
    assert server.states() == {3: ("AVAILABLE", ""), 4: ("END", f"{bad} is damaged")}
    assert server.told[-1] == f"version 4 of m is refused: {bad} is damaged; version 3 stays"
    num_loads = server.loads.num_loads
    server.poll()
    assert server.loads.num_loads == num_loads
    write_version(server.base_path, 4)
    server.poll()
    assert server.states() == {3: ("END", ""), 4: ("AVAILABLE", "")}


def test_while_the_new_version_loads_the_old_one_answers_and_the_status_says_so(server: Server) -> None:
    write_version(server.base_path, 3)
    server.start()
    write_version(server.base_path, 4)
    loading, go_on = threading.Event(), threading.Event()

    def load_slowly(path: pathlib.Path) -> object:
        loading.set()
        assert go_on.wait(600)
        return server.loads.serving.load(path)

    server.manager._serving = server.loads.serving._replace(load=load_slowly)
    poll = threading.Thread(target=server.poll)
    poll.start()
    assert loading.wait(600)
    assert server.states() == {3: ("AVAILABLE", ""), 4: ("LOADING", "")}
    assert server.answer() == 3
    go_on.set()
    poll.join()
    assert server.answer() == 4


def test_a_request_in_flight_keeps_its_version_and_new_ones_get_the_next(server: Server) -> None:
    write_version(server.base_path, 3)
    server.start()
    write_version(server.base_path, 4)
    with server.models.use(Target("m")) as servable:
        server.manager.poll()
        assert server.states() == {3: ("UNLOADING", ""), 4: ("AVAILABLE", "")}
        assert server.answer() == 4
        assert servable.run(None, {"x": np.zeros(1, np.float32)})["y"].tolist() == [3]
        # A roll-back does not wait for it either: the version is loaded a second time.
        shutil.rmtree(server.base_path / "4")
        server.manager.poll()
        assert server.answer() == 3
    server.manager.wait_until_drained()
    assert server.states() == {3: ("AVAILABLE", ""), 4: ("END", "")}


@pytest.mark.parametrize("num_swaps", [pytest.param(100 if IS_COMPLETE else 10)])
def test_swaps_and_roll_backs_under_load_lose_no_request_and_give_no_wrong_answer(
    server: Server, num_swaps: int
) -> None:
    write_version(server.base_path, 3)
    server.start()
    stopped = threading.Event()

    def request_until_stopped() -> int:
        num_answers = 0
        while not stopped.is_set():
            with server.models.use(Target("m")) as servable:
                x = np.array([num_answers], np.float32)
                answer = servable.submit(None, {"x": x}).result()["y"]
                # Each is answered by the version that it was given.
                assert answer.tolist() == [num_answers + servable.version]
            num_answers += 1
        return num_answers

    with concurrent.futures.ThreadPoolExecutor(4) as clients:
        counts = [clients.submit(request_until_stopped) for _ in range(4)]
        try:
            for i in range(num_swaps):
                if i % 2:
                    shutil.rmtree(server.base_path / "4")
                else:
                    write_version(server.base_path, 4)
                server.poll()
                assert server.models.available_versions("m") == [3 if i % 2 else 4]
        finally:
            stopped.set()
        assert all(count.result() > num_swaps for count in counts)
    assert server.loads.in_memory() == server.models.available_versions("m")


def test_the_link_of_published_exports_is_followed(tmp_path: pathlib.Path) -> None:
    for version in (1, 2):
        write_version(tmp_path / str(version) / "saved_model" / "m", version)
    current = tmp_path / "current"
    current.symlink_to("1")
    server = Server(current / "saved_model" / "m").start()
    for version in (2, 1):
        current.unlink()
        current.symlink_to(str(version))
        server.poll()
        assert server.models.available_versions("m") == [version]


def test_a_base_path_that_is_gone_for_a_while_changes_nothing_and_is_told_once(server: Server) -> None:
    write_version(server.base_path, 3)
    server.start()
    away = server.base_path.rename(server.base_path.with_name("away"))
    server.poll()
    server.poll()
    assert server.answer() == 3
    assert [line for line in server.told if "Could not find base path" in line] == [
        f"Could not find base path {server.base_path} for servable m (No such file or directory); its versions in "
        "memory stay"
    ]
    away.rename(server.base_path)
    server.poll()
    assert server.models.available_versions("m") == [3]


def test_an_empty_base_path_unloads_as_in_tensorflow_serving(server: Server) -> None:
    write_version(server.base_path, 3)
    server.start()
    shutil.rmtree(server.base_path / "3")
    server.poll()
    assert server.states() == {3: ("END", "")}
    with pytest.raises(RequestError) as caught:
        server.answer()
    assert caught.value.code is Code.NOT_FOUND


def test_the_status_forgets_old_versions_that_are_gone(server: Server) -> None:
    write_version(server.base_path, 1)
    server.start()
    for version in range(2, 30):
        shutil.rmtree(server.base_path / str(version - 1))
        write_version(server.base_path, version)
        server.poll()
    assert sorted(server.states()) == list(range(13, 30))


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        (VersionPolicy(), [3]),
        (VersionPolicy("latest", num_versions=2), [2, 3]),
        (ALL, [1, 2, 3]),
        (VersionPolicy("specific", versions=frozenset({1, 3, 7})), [1, 3]),
    ],
)
def test_the_policy_chooses_versions(server: Server, policy: VersionPolicy, served: list[int]) -> None:
    for version in (1, 2, 3):
        write_version(server.base_path, version)
    server.start(policy=policy)
    assert server.models.available_versions("m") == served


@pytest.mark.parametrize(
    ("available", "wanted", "unneeded"),
    [({3}, {4}, []), ({3, 4}, {4}, [3]), ({2, 3}, {4}, [2]), ({2, 3}, set(), [2, 3]), ({3}, {3}, [])],
)
def test_availability_is_preserved(available: set[int], wanted: set[int], unneeded: list[int]) -> None:
    assert find_unneeded(available, wanted) == unneeded


def test_labels_name_versions_that_are_served(server: Server) -> None:
    for version in (3, 4, 5):
        write_version(server.base_path, version)
    both = VersionPolicy("specific", versions=frozenset({3, 4}))
    server.start(policy=both, labels={"stable": 3, "canary": 4})
    assert (server.answer(label="stable"), server.answer(label="canary"), server.answer()) == (3, 4, 4)
    with pytest.raises(RequestError, match="Request to assign label to version 5 of model m, which is not currently"):
        server.manager.reload([server.config(policy=both, labels={"stable": 5})])
    assert server.answer(label="stable") == 3
    server.manager.reload([server.config(policy=both, labels={"stable": 4})])
    assert server.answer(label="stable") == 4
    with pytest.raises(RequestError, match="Unrecognized servable version label: canary"):
        server.answer(label="canary")


def test_a_reload_adds_and_removes_models_whole_or_not_at_all(server: Server, tmp_path: pathlib.Path) -> None:
    write_version(server.base_path, 3)
    write_version(tmp_path / "n", 1)
    bad = write_version(tmp_path / "bad", 1, "bad")
    server.start()
    other = ModelConfig("n", tmp_path / "n")
    with pytest.raises(RequestError, match=f"{bad} is damaged"):
        server.manager.reload([other, ModelConfig("bad", tmp_path / "bad")])
    assert server.models.names == ["m"]
    server.manager.wait_until_drained()
    assert server.loads.in_memory() == [3]
    server.manager.reload([server.config(), other])
    assert server.models.names == ["m", "n"]
    assert server.loads.num_loads == 4  # m stayed as it was
    server.manager.reload([other])
    server.manager.wait_until_drained()
    assert server.models.names == ["n"]
    assert server.loads.in_memory() == [1]


def test_another_base_path_under_the_same_name_is_loaded_even_for_the_same_number(
    server: Server, tmp_path: pathlib.Path
) -> None:
    write_version(server.base_path, 1)
    write_version(tmp_path / "moved", 1, 70)
    server.start()
    server.manager.reload([ModelConfig("m", tmp_path / "moved")])
    assert server.answer() == 70


def test_a_start_without_a_version_that_loads_is_an_error(server: Server) -> None:
    bad = write_version(server.base_path, 1, "bad")
    with pytest.raises(ArtifactError, match=f"{bad} is damaged"):
        server.start()
    shutil.rmtree(bad)
    with pytest.raises(ArtifactError, match=r"holds no version of m to serve \(it holds none\); put one there"):
        server.start()
    server.base_path.rmdir()
    with pytest.raises(ArtifactError, match=f"Could not find base path {server.base_path} for servable m"):
        server.start()


def test_a_poll_that_fails_is_not_the_last_one(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    write_version(server.base_path, 3)
    polled_twice = threading.Event()
    calls: list[int] = []

    def fail_first() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("once")
        polled_twice.set()

    server.manager.poll = fail_first
    server.manager.reload = lambda configs: None
    server.manager.start([], poll_wait_secs=0.001)
    try:
        assert polled_twice.wait(600)
    finally:
        server.manager.stop()
    assert "versions failed; it is tried again" in caplog.text


def test_nothing_looks_for_versions_with_a_wait_of_zero(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Callable[[], None]] = []
    monkeypatch.setattr("serving.models.manager.Periodic", lambda action, **_: started.append(action))
    write_version(server.base_path, 3)
    server.start()
    assert started == []
    assert server.models.get("m") is not None
    assert State.AVAILABLE in {s.state for s in server.models.get("m").servables.values()}
