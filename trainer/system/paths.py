"""Paths as people type them. A shell expands `~` only at the beginning of a word, and nobody does in a YAML file."""

import os
import pathlib
import re

from trainer.errors import UsageError

_OPTION = re.compile(r"(--[a-z0-9-]+=)(~.*)", re.DOTALL)


def expand_path(text: str) -> str:
    """Return `text` with the home directory in place of a `~` or `~user` at its beginning.

    Raises:
        UsageError: there is no such user, or the name cannot be written down in UTF-8, as all files here are.
    """
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        user = expanded.partition("/")[0].removeprefix("~") or "you"
        raise UsageError(f"the path {text} begins with the home directory of {user}, who has none here; write ./{text}")
    try:
        expanded.encode()
    except UnicodeEncodeError:
        shown = expanded.encode(errors="backslashreplace").decode()
        raise UsageError(f"the path {shown} is not UTF-8, in which its name is written down; rename it") from None
    return expanded


def expand_argument(argument: str) -> str:
    """Expand `~/` at the beginning of an argument of the command line, or behind `--option=`."""
    option = _OPTION.fullmatch(argument)
    before, value = option.groups() if option else ("", argument)
    # What is of no user may be the name of something else.
    return before + os.path.expanduser(value) if value == "~" or re.match("~[^/]*/", value) else argument


def as_path(path: pathlib.Path | str) -> pathlib.Path:
    """Return a local path. Raises UsageError as `expand_path`."""
    return pathlib.Path(expand_path(os.fspath(path)))
