"""Ask other programs of this machine for facts; whatever becomes of them, the answer is text or None."""

import os
import shutil
import subprocess


def output_of(program: str, *arguments: str, timeout_secs: float = 10.0) -> str | None:
    """Return what `program` prints, in English where it can; None where it is not there, fails or does not end."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 -- fixed arguments, no shell
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_secs,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (subprocess.TimeoutExpired, OSError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
