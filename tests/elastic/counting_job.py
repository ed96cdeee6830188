"""An elastic job whose workers only count: python counting_job.py DIRECTORY MIN MAX MODE [WAIT_SECS [COOLDOWN_SECS]].

The hosts stand in DIRECTORY/hosts. Its workers run this file again; TensorFlow and Horovod's collectives play no part.
They see each other through DIRECTORY, count until DIRECTORY/finish is there, and say the count of the chief.
"""

import os
import pathlib
import signal
import sys
import time
from typing import Any

from trainer.distribute.elastic.discovery import HostDiscoveryScript
from trainer.distribute.elastic.generation import HostSlot
from trainer.distribute.elastic.messages import End, Join, Leave, Running, Save, Waiting, of_message, to_message
from trainer.distribute.elastic.supervisor import ElasticOptions, ElasticSupervisor
from trainer.distribute.launchers import channel, heartbeat
from trainer.distribute.launchers.supervisor import SupervisorOptions
from trainer.errors import TrainerError


class CountingWorker:
    """`mode` says what the worker in the second slot of a host does; those in the first only count."""

    def __init__(self, directory: pathlib.Path, mode: str) -> None:
        self.directory = directory
        self.mode = mode if os.environ["SLOT"] == "1" or mode.startswith("all-") else "count"
        line = channel.of_this_worker()
        pulse = heartbeat.of_this_worker()
        assert line is not None and pulse is not None
        self.line, self.pulse = line, pulse
        self.count: int | None = None
        self.generation = 0
        self.is_stopped = False
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: Any) -> None:
        self.is_stopped = True

    def run(self) -> int:
        print(f"worker on {os.environ['HOST']}, process {os.getpid()}", flush=True)
        why = ""
        while True:
            self.say_waiting(why)
            join = self.wait_to_join()
            if join is None:
                return 75
            status = self.count_in(join)
            if status is not None:
                return status
            why = "a peer is gone"

    def say_waiting(self, why: str) -> None:
        facts = {"dataset": "another" if self.mode == "differ" else "the same"}
        token = 7 if (self.directory / "run").exists() and self.mode != "blind" else 0
        waiting = Waiting(
            generation=self.generation, step=self.count, checkpoint_step=0, run_dir_token=token, facts=facts, why=why
        )
        self.line.say(to_message(waiting))

    def wait_to_join(self) -> Join | None:
        while self.line.is_open:
            self.pulse.beat()
            for said in map(of_message, self.line.hear(0.1)):
                if isinstance(said, Join):
                    return said
                if isinstance(said, Save):
                    print(f"saved {self.count}", flush=True)
                elif isinstance(said, End):
                    return None
        return None

    def count_in(self, join: Join) -> int | None:
        """None where the generation ends and the worker goes on."""
        self.generation = join.generation
        rank, size = int(join.environment["HOROVOD_RANK"]), int(join.environment["HOROVOD_SIZE"])
        self.file("pid", rank).write_text(str(os.getpid()))
        if self.mode == "die-meeting" and self.generation == 1:
            os.kill(os.getpid(), signal.SIGABRT)
        peers = [self.read(f"pid-{self.generation}-{other}") for other in range(size)]
        if rank == 0:
            self.count = 0 if join.from_checkpoint or self.count is None else self.count
            self.file("count", 0).write_text(str(self.count))
            (self.directory / "run").touch()
        self.count = self.read(f"count-{self.generation}-0")
        self.line.say(
            to_message(Running(generation=self.generation, step=self.count, run_dir_token=7 if rank == 0 else 0))
        )
        self.pulse.move_to(2 * self.count + 2)
        print(f"generation {self.generation}: rank {rank} of {size} from {self.count}", flush=True)
        while all(is_there(pid) for pid in peers):
            if self.mode in ("vain", "all-vain"):
                return None
            if self.mode in ("fail", "all-fail"):
                print("the reason of the failure", flush=True)
                return 3
            if self.mode == "hang" and self.count > 20:
                time.sleep(3600)
            time.sleep(0.02)
            self.count += 1
            self.pulse.move_to(2 * self.count + 2)
            if (self.directory / "finish").exists():
                return 0
            if self.is_stopped:
                return 75
            if any(isinstance(said, Leave) for said in map(of_message, self.line.hear())):
                return None
        return None

    def file(self, kind: str, rank: int) -> pathlib.Path:
        return self.directory / f"{kind}-{self.generation}-{rank}"

    def read(self, name: str) -> int:
        path = self.directory / name
        while not path.exists() or not path.read_text():
            time.sleep(0.01)
        return int(path.read_text())


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def launch(directory: pathlib.Path, mode: str, options: ElasticOptions) -> int:
    script = directory / "discover"
    script.write_text(f"#!/bin/sh\ncat '{directory}/hosts'\n")
    script.chmod(0o755)
    supervisor = ElasticSupervisor(
        HostDiscoveryScript(str(script)),
        log_dir=directory / "logs",
        show=lambda line: print(line, flush=True),
        options=options,
    )

    def environment(slot: HostSlot) -> dict[str, str]:
        return {"SLOT": str(slot.local_index), "HOST": str(slot.host_name)}

    try:
        supervisor.run([sys.executable, __file__, "worker", str(directory), mode], environment)
    except TrainerError as e:
        print(f"{type(e).__name__}: {e}", flush=True)
        return e.exit_status
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        sys.exit(CountingWorker(pathlib.Path(sys.argv[2]), sys.argv[3]).run())
    wait_secs, cooldown_secs = (float(argument) for argument in [*sys.argv[5:], "60", "60"][:2])
    sys.exit(
        launch(
            pathlib.Path(sys.argv[1]),
            sys.argv[4],
            ElasticOptions(
                min_replicas=int(sys.argv[2]),
                max_replicas=int(sys.argv[3]),
                wait_secs=wait_secs,
                cooldown_secs=cooldown_secs,
                discover_every_secs=0.1,
                supervisor=SupervisorOptions(stop_grace_secs=5, start_timeout_secs=600, stall_timeout_secs=3.0),
            ),
        )
    )
