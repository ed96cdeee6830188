"""Every option that a message advises exists, in a command that can print the message or in the one that it names."""

import ast
import pathlib
import re
from collections.abc import Iterator

import click
import pytest
import typer.main

from trainer.cli.app import app

ROOT = pathlib.Path(__file__).parents[2]
OPTION = re.compile(r"(?<![\w-])--(?!of-)[a-z][a-z-]*[a-z]\b")
COMMAND = re.compile(r"\btrainer ((?:bench )?[a-z]+)")
# Who can print what stands in a module; the first prefix counts. Messages of other modules may name any command.
PRINTED_BY = {
    "trainer/data/preparation/auto_prepare.py": ("launch",),
    "trainer/data/preparation/": ("prepare",),
    "trainer/data/sources/": ("prepare",),
    "trainer/data/dataset/publish.py": ("prepare",),
    "trainer/data/sampling/": ("launch",),
    "trainer/plan/": ("launch",),
    "trainer/launch/": ("launch",),
    "trainer/features/": ("launch",),
    "trainer/distribute/": ("launch",),
}
# Of programs that are not ours, and what a shell's line is made of.
FOREIGN = frozenset(
    {
        "--query-gpu",
        "--format",
        "--version",
        "--property",
        "--value",
        "--verify",
        "--status",
        "--porcelain",
        "--untracked-files",
    }
    | {"--gpus", "--shm-size", "--distribution", "--condition", "--timeout", "--data-binary", "--lease-secs"}
)


def _options() -> dict[str, frozenset[str]]:
    """By command, such as "bench input"."""
    found: dict[str, frozenset[str]] = {}

    def walk(command: click.Command, name: str) -> None:
        options = {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}
        found[name] = frozenset(options | {"--help", "--debug"})
        for below, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{name} {below}".strip())

    walk(typer.main.get_command(app), "")
    return found


OPTIONS = _options()
ALL = frozenset().union(*OPTIONS.values())


def _messages(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each string of a module that is raised or passed to a function, in full."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("Option", "Argument", "compile", "Field"):
            continue
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            text = "".join(_parts(argument)) if isinstance(argument, ast.Constant | ast.JoinedStr | ast.BinOp) else ""
            if text:
                yield node.lineno, text


def _parts(node: ast.AST) -> Iterator[str]:
    """The strings in an expression, in order, with a space for each value that is filled in."""
    if isinstance(node, ast.Constant):
        yield node.value if isinstance(node.value, str) else ""
        return
    if isinstance(node, ast.IfExp):
        yield from (*_parts(node.body), " ", *_parts(node.orelse))
        return
    for child in ast.iter_child_nodes(node):
        yield from _parts(child)
    if isinstance(node, ast.FormattedValue):
        yield " "


def _modules() -> list[str]:
    return sorted(
        str(path.relative_to(ROOT))
        for package in ("trainer", "export", "serving")
        for path in (ROOT / package).rglob("*.py")
    )


def find_bad_advice(module: str, text: str) -> set[str]:
    """The options in `text` that its reader does not have."""
    bad = set()
    printed_by = next((commands for prefix, commands in PRINTED_BY.items() if module.startswith(prefix)), None)
    here = frozenset().union(*(OPTIONS[command] for command in printed_by)) if printed_by else ALL
    for option in OPTION.finditer(text):
        named = [match[1] for match in COMMAND.finditer(text[: option.start()]) if match[1] in OPTIONS]
        known = OPTIONS[named[-1]] | here if named else here
        if option[0] not in known and option[0] not in FOREIGN:
            bad.add(option[0])
    return bad


@pytest.mark.parametrize("package", ["trainer", "export", "serving"])
def test_advised_options_exist_where_they_are_advised(package: str) -> None:
    bad = [
        f"{module}:{line}: {sorted(options)} in {text[:100]!r}"
        for module in _modules()
        if module.startswith(package)
        for line, text in _messages(ROOT / module)
        if (options := find_bad_advice(module, text))
    ]
    assert not bad, "\n".join(bad)


def test_advised_commands_exist() -> None:
    bad = [
        f"{module}:{line}: trainer {match[1]}"
        for module in _modules()
        for line, text in _messages(ROOT / module)
        for match in re.finditer(r"(?:with: |; )trainer ([a-z]+)\b", text)
        if match[1] not in OPTIONS
    ]
    assert not bad, "\n".join(bad)


def test_bad_advice_is_found() -> None:
    assert find_bad_advice("trainer/data/sources/x.py", "leave it out with --excluded NAME") == {"--excluded"}
    assert find_bad_advice("trainer/plan/plan.py", "prepare it again with --val above 0") == {"--val"}
    assert not find_bad_advice("trainer/plan/plan.py", "make one with: trainer prepare SOURCE --out DATASET --val 0.1")
