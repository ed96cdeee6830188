"""Files and directories that appear whole: what is flushed before which rename, and what a reader can see."""

import os
import pathlib
import threading
from collections.abc import Callable

import pytest

from trainer.system import atomic

Events = list[tuple[str, str]]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """Record in their order the flushes, by what was flushed, and the renames, by the new name."""
    recorded: Events = []

    def spy(owner: object, name: str, subject: Callable[..., str]) -> None:
        real = getattr(owner, name)

        def call(*arguments: object) -> object:
            recorded.append((name, subject(*arguments)))
            return real(*arguments)

        monkeypatch.setattr(owner, name, call)

    spy(os, "fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    for name in ("rename", "replace"):
        spy(os, name, lambda old, new: str(new))
    spy(atomic, "exchange", lambda one, other: str(other))
    return recorded


def check_order(events: Events, path: pathlib.Path, content: set[str], *, rename: str) -> None:
    at = events.index((rename, str(path)))
    before = {pathlib.Path(name).name for kind, name in events[:at] if kind == "fsync"}
    assert {name for name in before if not name.startswith(atomic.TEMPORARY_PREFIX)} >= content - {""}
    assert [name for name in before if name.startswith(atomic.TEMPORARY_PREFIX)], "the new file or folder itself"
    assert ("fsync", str(path.parent)) in events[at:], "and then the name of it"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: pathlib.Path, events: Events) -> None:
    atomic.write_text(tmp_path / "plan.json", "{}")
    check_order(events, tmp_path / "plan.json", set(), rename="replace")


def test_a_directory_and_all_in_it_is_on_the_disk_before_it_has_its_name(
    tmp_path: pathlib.Path, events: Events
) -> None:
    path = tmp_path / "checkpoint"
    for rename in ("rename", "exchange"):
        events.clear()
        with atomic.new_directory(path) as directory:
            (directory / "inner").mkdir()
            (directory / "inner" / "weights").write_text(rename)
            (directory / "info").write_text("{}")
        check_order(events, path, {"inner", "weights", "info"}, rename=rename)
        assert (path / "inner" / "weights").read_text() == rename
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_a_directory_that_is_replaced_is_there_at_every_moment(tmp_path: pathlib.Path) -> None:
    path, is_over, missed, seen = tmp_path / "export", threading.Event(), [], set()

    def look() -> None:
        while not is_over.is_set():
            try:
                seen.add(len(os.listdir(path)))
            except FileNotFoundError as e:
                missed.append(e)

    def write(number: int) -> None:
        with atomic.new_directory(path) as directory:
            for i in range(3):
                (directory / str(i)).write_text(str(number))

    write(0)
    reader = threading.Thread(target=look)
    reader.start()
    for number in range(1, 300):
        write(number)
    is_over.set()
    reader.join()
    assert not missed
    assert 3 in seen


def test_where_two_names_cannot_be_exchanged_the_old_directory_stays_and_the_error_says_what_to_do(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "export"
    path.mkdir()
    (path / "old").touch()
    monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, **__: object())
    with pytest.raises(OSError, match="remove the old one first"), atomic.new_directory(path) as directory:
        (directory / "new").touch()
    assert [entry.name for entry in tmp_path.rglob("*")] == ["export", "old"]
