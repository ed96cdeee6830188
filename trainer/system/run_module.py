"""Run a module of the installation that this file lies in: python -P .../run_module.py MODULE [ARGUMENT ...].

`python -m` looks for the module, and for everything that it imports, in the working directory first: a user's own
trainer.py or random.py there would run in its place. `-P` leaves that directory out, and with it a checkout that
nobody has installed; so the packages of this project are found beside this file, whatever else has their names.
"""

import importlib.abc
import importlib.machinery
import pathlib
import runpy
import sys
from collections.abc import Sequence
from types import ModuleType

PACKAGES = ("trainer", "export", "serving", "k8s", "recipes")
_ROOT = pathlib.Path(__file__).resolve().parents[2]


class _OwnPackages(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in PACKAGES:
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, [str(_ROOT)], target)


if __name__ == "__main__":
    sys.meta_path.insert(0, _OwnPackages())
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
