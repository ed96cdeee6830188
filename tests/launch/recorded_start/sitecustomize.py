"""Python imports this at the start of every process whose PYTHONPATH names this folder.

Writes down, in RECORDS, how the process was started, and later every read of examples.
"""

import importlib.abc
import importlib.util
import json
import os
import pathlib
import sys
import threading

_RECORDS = pathlib.Path(os.environ["RECORDS"])
_READER = "trainer.data.dataset.split_reader"
_lock = threading.Lock()


def _strings(path: str) -> list[str]:
    return [os.fsdecode(part) for part in pathlib.Path(path).read_bytes().split(b"\0")[:-1]]


def _record_start() -> None:
    record = {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "command": _strings("/proc/self/cmdline"),
        "environment": dict(line.split("=", 1) for line in _strings("/proc/self/environ")),
        # With what Python itself has added: what this process hands on.
        "handed_on": dict(os.environ),
    }
    (_RECORDS / f"start-{os.getpid()}.json").write_text(json.dumps(record))


class _RecordReads(importlib.abc.MetaPathFinder):
    """Lets the reader of examples be imported, and then wraps its `read`."""

    def find_spec(self, name, path, target=None):
        if name != _READER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_wrap(module):
            execute(module)
            read = module.SplitReader.read

            def recorded(reader, indices):
                line = json.dumps([reader.paths[0].name.partition("-")[0], [int(i) for i in indices]])
                with _lock, (_RECORDS / f"reads-{os.getpid()}.jsonl").open("a") as file:
                    file.write(line + "\n")
                return read(reader, indices)

            module.SplitReader.read = recorded

        spec.loader.exec_module = execute_and_wrap
        return spec


_record_start()
sys.meta_path.insert(0, _RecordReads())
