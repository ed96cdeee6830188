"""Test modules are imported by their bare names, so no two files of tests may share one."""

import collections
import pathlib

TESTS = pathlib.Path(__file__).resolve().parents[1]


def test_no_two_files_of_tests_have_one_name() -> None:
    paths = collections.defaultdict(list)
    for path in sorted(TESTS.rglob("*.py")):
        if not (path.parent / "__init__.py").exists() and path.name != "conftest.py":
            paths[path.name].append(path.relative_to(TESTS).as_posix())
    assert [found for found in paths.values() if len(found) > 1] == []
