"""Start Python processes without the working directory on their path; this project starts none in another way."""

import pathlib
import sys

from trainer.system import run_module


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `module` of this installation, here or on a host with the same one.

    A user's trainer.py, random.py or numpy.py in the working directory is not imported; PYTHONPATH still counts.
    """
    return [sys.executable, "-P", str(pathlib.Path(run_module.__file__).absolute()), module, *arguments]
