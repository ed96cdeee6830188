"""`make demo` is not run by the tests, which take its steps one by one; what it imports must be there all the same."""

import importlib
import pathlib
import re

DEMO = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "demo"


def test_what_the_demo_imports_is_there() -> None:
    found = re.findall(r"^from ((?:trainer|export|serving)[\w.]*) import (.+)$", DEMO.read_text(), re.MULTILINE)
    assert found
    for module, names in found:
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{module} has no {name}"
