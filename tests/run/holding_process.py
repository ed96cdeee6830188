"""Holds a lock as a command of its own, and says so; started by the tests with PATH OWNER."""

import pathlib
import sys

from trainer.system.lock import hold_or_refuse

with hold_or_refuse(pathlib.Path(sys.argv[1]), owner=sys.argv[2], purpose=sys.argv[3]):
    print("held", flush=True)
    sys.stdin.read()
