"""The one way in which this project starts Python processes: without the working directory on their path."""

import pathlib
import sys

from trainer.system import run_module


def python_command(module: str, *arguments: str) -> list[str]:
    """What runs `module` of this installation with `arguments`, here, or on a host with the same one.

    A user's trainer.py, random.py or numpy.py in the working directory is not imported; PYTHONPATH still counts.
    """
    return [sys.executable, "-P", str(pathlib.Path(run_module.__file__).absolute()), module, *arguments]
