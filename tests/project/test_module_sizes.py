"""A module that has grown past 350 lines holds two things; so does a function whose body has grown past 60."""

import ast
import pathlib

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("trainer", "export", "serving", "k8s", "benchmarks", "scripts")
MAX_MODULE_LINES = 350
MAX_BODY_LINES = 60


def num_body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of code and comment: the signature (a command's options) and the docstring are not counted."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or function.lineno) - body[0].lineno + 1 if body else 0


def oversized(root: pathlib.Path) -> list[str]:
    found = []
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        text = path.read_text()
        name = path.relative_to(root)
        num_lines = len(text.splitlines())
        if num_lines > MAX_MODULE_LINES:
            found.append(f"{name} has {num_lines} lines, {MAX_MODULE_LINES} at most: does it hold two things?")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and num_body_lines(node) > MAX_BODY_LINES:
                found.append(
                    f"{name}:{node.lineno} {node.name} has a body of {num_body_lines(node)} lines, "
                    f"{MAX_BODY_LINES} at most: name its parts"
                )
    return found


def test_modules_and_functions_are_of_readable_size():
    found = oversized(REPOSITORY)
    assert not found, "\n".join(found)


def test_a_planted_long_module_and_a_planted_long_function_are_found(tmp_path):
    (tmp_path / "trainer").mkdir()
    body = "    x = 1\n" * 61
    (tmp_path / "trainer" / "long_function.py").write_text(f'def f(\n    a,\n):\n    """Doc."""\n{body}')
    (tmp_path / "trainer" / "long_module.py").write_text("x = 1\n" * 351)
    (tmp_path / "trainer" / "fine.py").write_text("def f():\n" + "    x = 1\n" * 60 + "x = 1\n" * 289)
    assert oversized(tmp_path) == [
        "trainer/long_function.py:1 f has a body of 61 lines, 60 at most: name its parts",
        "trainer/long_module.py has 351 lines, 350 at most: does it hold two things?",
    ]
