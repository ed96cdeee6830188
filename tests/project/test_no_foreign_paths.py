"""Nothing in the repository names the machine it was written on, or where its packages come from."""

import pathlib
import re
import subprocess

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# In pieces, so that this file does not find itself. The container images have a user `trainer` of their own.
FOREIGN = {
    "a folder of one machine": r"(?:^|[^\w.])/(?:wo"
    + r"rk|fa"
    + r"rm|ro"
    + r"ot|home/(?!trainer/)[a-z]\w*|Users/[A-Za-z]\w*)/",
    "the host of a package registry": "|".join(
        (
            "py" + r"pi\.org",
            "pythonho" + r"sted\.org",
            "npm" + r"js\.(?:org|com)",
            r"\b(?:deb|security)\.debi" + r"an\.org",
        )
    ),
    "a folder outside the repository": r"\.\./sha" + r"red\b",
}
PATTERNS = {what: re.compile(pattern, re.MULTILINE) for what, pattern in FOREIGN.items()}


def repository_files() -> list[pathlib.Path]:
    """What is tracked or would be: ignored files may say what they like."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    ).stdout.decode()
    return [path for name in listed.split("\0") if name and (path := REPOSITORY / name).is_file()]


def find_foreign(name: str, data: bytes) -> list[str]:
    text = data.decode("utf-8", errors="replace")
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1} names {what}: {match[0].strip()!r}"
        for what, pattern in PATTERNS.items()
        for match in pattern.finditer(text)
    ]


def test_no_file_names_a_foreign_path_or_host():
    files = repository_files()
    assert REPOSITORY / "pyproject.toml" in files
    found = [line for path in files for line in find_foreign(str(path.relative_to(REPOSITORY)), path.read_bytes())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "planted",
    [
        "data = '/wo" + "rk/main/data'",
        "see /ro" + "ot/.cache/x",
        "cd /home/" + "anna/trainer",
        "--index-url https://py" + "pi.org/simple",
        "https://files.pythonho" + "sted.org/packages/a.whl",
        "cp ../sha" + "red/probe.py .",
    ],
)
def test_a_planted_foreign_name_is_found(planted):
    assert len(find_foreign("x", f"first line\n{planted}\n".encode())) == 1
    assert find_foreign("x", f"first line\n{planted}\n".encode())[0].startswith("x:2 names")


@pytest.mark.parametrize(
    "fine",
    ["network/", "/home/trainer/.ssh/config", "a/work/b", "./root/x", "shared memory", "/usr/include", "python.org"],
)
def test_what_merely_looks_alike_is_left_alone(fine):
    assert find_foreign("x", fine.encode()) == []
