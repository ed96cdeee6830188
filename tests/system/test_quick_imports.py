"""The imports of a command: without what Keras imports for others, and with everything back afterwards."""

import gc
import importlib
import pathlib
import sys

import pytest

from trainer.system import own_process, tf_runtime

NAME = "imported_for_others"


@pytest.fixture(autouse=True)
def _package(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{NAME}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tf_runtime, "_UNUSED_BY_US", (NAME, "pytest"))
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)


def test_a_command_starts_without_unused_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_process, "is_command", True)
    with tf_runtime._quick_imports():
        with pytest.raises(ImportError):
            importlib.import_module(NAME)
        assert importlib.import_module("pytest") is pytest, "what is imported already stays"
        assert not gc.isenabled()
    assert gc.isenabled()
    assert importlib.import_module(NAME).__name__ == NAME
    gc.unfreeze()


def test_a_notebook_imports_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_process, "is_command", False)
    with tf_runtime._quick_imports():
        assert importlib.import_module(NAME).__name__ == NAME
        assert gc.isenabled()
