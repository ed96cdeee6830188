"""What the documentation names exists: files, tests, pages, sections, commands and their options."""

import pathlib
import re
import subprocess

import click
import pytest
import typer.main

from trainer.cli.app import app

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
PAGES = [ROOT / name for name in TRACKED if name.endswith(".md") and not name.startswith("tests/")]
# In backticks, a module, a folder or a pattern: `run/claim.py`, `tests/data/test_order*.py`, `tests/k8s/`.
NAMED = re.compile(
    r"`((?:[\w*-]+/)*[\w*-]+\.(?:py|config)|(?:tests|trainer|export|serving|k8s|benchmarks|scripts|docs)/[\w*/.-]+)`"
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Examples of a user's own files, and of files that a user has.
THEIRS = {"trainer.py", "random.py", "hosts.sh"}
COMMAND = re.compile(r"\btrainer ((?:bench )?[a-z]+)\b([^\n|`#]*)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page: pathlib.Path) -> None:
    paths = [pathlib.PurePath("/", name) for name in TRACKED]
    paths += [parent for path in paths for parent in path.parents]
    named = set(NAMED.findall(page.read_text(encoding="utf-8"))) - THEIRS
    assert [name for name in sorted(named) if not any(path.match(name) for path in paths)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_page_and_a_section(page: pathlib.Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        file, _, section = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (section and section not in _sections(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_in_a_command_exists(page: pathlib.Path) -> None:
    options = _options()
    unknown = [
        f"trainer {command} {option}"
        for command, rest in COMMAND.findall(page.read_text(encoding="utf-8"))
        if command in options
        for option in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", rest)
        if option not in options[command] and "study" not in command
    ]
    assert unknown == []


def _sections(page: pathlib.Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def _options() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}

    def walk(command: click.Command, name: str) -> None:
        found[name] = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "--debug"}
        for below, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{name} {below}".strip())

    walk(typer.main.get_command(app), "")
    return found
