"""Text is read and written as UTF-8, and says so: the locale of the machine must not decide what a file holds."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("trainer", "export", "serving", "k8s", "benchmarks", "scripts")
PATHS = sorted(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py"))
# `write_text` of this module is UTF-8 by definition; these `open`s are of archives, images and workers.
OURS = ("atomic",)
OTHER_OPENS = ("os", "Image", "tarfile", "zipfile", "tf", "gzip", "worker", "member")


def finds(source: str) -> Iterator[int]:
    """The lines of calls that read or write text in the encoding of the locale."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and is_text_by_locale(node):
            yield node.lineno


def is_text_by_locale(call: ast.Call) -> bool:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given or None in given:
        return False
    name, owner = name_of(call.func)
    if name in ("read_text", "write_text"):
        # The encoding may be given by position.
        return owner not in OURS and len(call.args) < (1 if name == "read_text" else 2)
    if name in ("run", "Popen", "check_output", "check_call") and owner == "subprocess":
        return is_true(given.get("text")) or is_true(given.get("universal_newlines"))
    if name in ("open", "NamedTemporaryFile", "TemporaryFile", "fdopen"):
        if owner in OTHER_OPENS and name == "open":
            return False
        default = "r" if name in ("open", "fdopen") else "w+b"
        return is_text_mode(call, given, is_method=owner is not None and name == "open", default=default)
    return False


def is_text_mode(call: ast.Call, given: dict[str | None, ast.expr], *, is_method: bool, default: str) -> bool:
    position = 0 if is_method or default != "r" else 1
    mode = given.get("mode") or (call.args[position] if len(call.args) > position else ast.Constant(default))
    if not (isinstance(mode, ast.Constant) and isinstance(mode.value, str) and set(mode.value) <= set("rwxabt+")):
        return False  # an `open` of something else
    return "b" not in mode.value


def name_of(function: ast.expr) -> tuple[str, str | None]:
    """The name that is called, and of what; "" for what has no name."""
    if isinstance(function, ast.Name):
        return function.id, None
    if isinstance(function, ast.Attribute):
        return function.attr, ast.unparse(function.value).partition(".")[0].partition("(")[0]
    return "", None


def is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def test_text_has_an_encoding() -> None:
    found = [f"{path}:{line}" for path in PATHS for line in finds(path.read_text(encoding="utf-8"))]
    assert not found, f"give encoding= in {found}"


@pytest.mark.parametrize(
    "source",
    [
        "path.read_text({})",
        "(a / b).write_text(text, {})",
        "open(path, {})",
        "path.open('w', {})",
        "open(path, mode='a', {})",
        "subprocess.run(command, text=True, {})",
        "tempfile.NamedTemporaryFile('w', {})",
    ],
)
def test_text_without_an_encoding_is_found(source: str) -> None:
    assert list(finds(source.format(""))) == [1]
    assert not list(finds(source.format("encoding='utf-8'")))
