"""`checksums.json`: a finished export whose files are replaced verifies at every moment."""

import itertools
import pathlib
import unittest.mock

import pytest

from export.files.checksums import Checksums, replace_files
from trainer.errors import ArtifactError, ParityError
from trainer.system import atomic

NEW = {"latency.json": b"5 ms", "MODEL_CARD.md": b"the card, 5 ms"}
# The checksums that say what is to come, the two files, the checksums that say that they are there.
NUM_WRITES = 4


class Killed(BaseException):
    """Ends a writer as a signal does: nothing behind it happens."""


@pytest.fixture
def finished(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "onnx").mkdir()
    for name, content in {"labels.txt": "a\nb\n", "MODEL_CARD.md": "the card", "onnx/m.onnx": "weights"}.items():
        (tmp_path / name).write_text(content)
    Checksums.of(tmp_path).save(tmp_path)
    return tmp_path


def replace_and_be_killed(export_dir: pathlib.Path, contents: dict[str, bytes], *, after: int) -> None:
    """Replaces files, and dies in the middle of the next file after so many."""
    number, write = itertools.count(), atomic.write_bytes

    def write_or_die(path: pathlib.Path, content: bytes) -> None:
        if next(number) == after:
            path.with_name(f".tmp-{path.name}-01234567").write_bytes(content[:3])
            raise Killed
        write(path, content)

    with unittest.mock.patch("trainer.system.atomic.write_bytes", write_or_die), pytest.raises(Killed):
        replace_files(export_dir, contents)


@pytest.mark.parametrize("after", range(NUM_WRITES))
def test_a_kill_leaves_an_export_that_verifies_and_can_be_finished(finished: pathlib.Path, after: int) -> None:
    replace_and_be_killed(finished, NEW, after=after)
    Checksums.load(finished).verify(finished)
    # Another kill, of a writer with other contents, at the same place or the next.
    for again in range(NUM_WRITES):
        replace_and_be_killed(finished, {name: content + b" %d" % again for name, content in NEW.items()}, after=again)
        Checksums.load(finished).verify(finished)
    replace_files(finished, NEW)
    Checksums.load(finished).verify(finished)
    assert Checksums.load(finished) == Checksums.of(finished)
    assert all((finished / name).read_bytes() == content for name, content in NEW.items())
    assert not list(finished.glob(".*"))


@pytest.mark.parametrize("after", range(NUM_WRITES + 1))
def test_what_else_was_changed_still_shows(finished: pathlib.Path, after: int) -> None:
    (finished / "labels.txt").write_text("b\na\n")
    if after < NUM_WRITES:
        replace_and_be_killed(finished, NEW, after=after)
    else:
        replace_files(finished, NEW)
    with pytest.raises(ParityError, match=r"labels\.txt was changed"):
        Checksums.load(finished).verify(finished)


def test_a_file_that_is_neither_the_old_nor_the_new_one_is_found(finished: pathlib.Path) -> None:
    replace_and_be_killed(finished, NEW, after=2)
    (finished / "MODEL_CARD.md").write_text("another card")
    with pytest.raises(ParityError, match=r"MODEL_CARD\.md was changed"):
        Checksums.load(finished).verify(finished)


def test_a_field_that_the_schema_lacks_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "checksums.json").write_text('{"schema_version": 1, "files": {}, "other": 1}')
    with pytest.raises(ArtifactError, match="is not of schema version 1"):
        Checksums.load(tmp_path)
