"""What is asked of an elastic job: wrong combinations, hosts from scripts, and who becomes what in a generation."""

import pathlib

import pytest

from trainer.cli.app import main
from trainer.config.config import load_config
from trainer.distribute.elastic import options
from trainer.distribute.elastic.discovery import HostDiscoveryScript
from trainer.distribute.elastic.generation import Candidate, HostSlot, form_generation, missing_slots
from trainer.distribute.elastic.messages import Waiting
from trainer.distribute.launchers.hosts import Host
from trainer.errors import ConfigError, UsageError
from trainer.launch.job import worker_arguments

pytestmark = pytest.mark.slow


def script(directory: pathlib.Path, *lines: str) -> str:
    path = directory / "discover"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


def find_worker_slots(**settings: object) -> list[str]:
    config = load_config(flags={"distribute": {"device": "cpu", "strategy": "horovod", **settings}}).distribute
    return [str(slot.host) for slot in options.find_worker_slots(config, num_gpus_found=0)]


def test_hosts_of_a_script_have_one_slot_or_as_many_as_it_says(tmp_path: pathlib.Path) -> None:
    found = HostDiscoveryScript(script(tmp_path, "echo trainer-worker-0.trainer", "echo", "echo b:4")).find()
    assert found == [Host("trainer-worker-0.trainer", 1), Host("b", 4)]


@pytest.mark.parametrize(
    ("lines", "answer"),
    [
        (["echo a b"], "printed 'a b'; expected NAME or NAME:WORKERS, one host a line"),
        (["echo a:two"], "printed 'a:two'"),
        (["echo a:0"], "printed 'a:0'"),
        (["echo a,b"], "printed 'a,b'"),
        (["echo a; echo a:2"], "printed a twice"),
        (["echo no cluster here >&2; exit 3"], r"ended with status 3 \(no cluster here\)"),
    ],
)
def test_a_script_that_fails_or_prints_nonsense_is_named(tmp_path: pathlib.Path, lines: list[str], answer: str) -> None:
    with pytest.raises(ConfigError, match=answer):
        HostDiscoveryScript(script(tmp_path, *lines)).find()


def test_a_script_that_is_not_there_or_not_executable_is_named(tmp_path: pathlib.Path) -> None:
    (plain := tmp_path / "plain").write_text("echo a\n")
    for path in (plain, tmp_path / "absent"):
        with pytest.raises(ConfigError, match=f"{path} cannot be run .*make it executable"):
            HostDiscoveryScript(str(path)).find()


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"strategy": "mirrored", "min_replicas": 1}, "horovod alone can be; --strategy is mirrored; add --strategy"),
        ({"min_replicas": 3, "max_replicas": 2}, "--min-replicas 3 is more than --max-replicas 2; exchange them"),
        ({"host_discovery_script": "/bin/true"}, "--host-discovery-script needs --max-replicas"),
        ({"host_discovery_script": "/bin/true", "max_replicas": 2, "hosts": "a:1"}, "exclude each other"),
        ({"hosts": "a:1,b:1", "min_replicas": 1, "replicas": 2}, "the hosts say how many there are"),
        ({"hosts": "a:1,b:1", "min_replicas": 3}, "--min-replicas 3 asked for, and there is room for 2"),
        ({"replicas": 2, "min_replicas": 3}, "use more --replicas or --gpus, or --min-replicas 2"),
    ],
)
def test_what_does_not_go_together_is_an_error_with_the_fix(settings: dict[str, object], answer: str) -> None:
    with pytest.raises(UsageError, match=answer):
        find_worker_slots(**settings)


def test_a_process_that_mpirun_has_started_is_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(
        ConfigError, match=r"as one of 4 \(OMPI_COMM_WORLD_RANK is set\); run the command once, without"
    ):
        find_worker_slots(min_replicas=1, replicas=2)


def test_a_job_is_planned_with_the_hosts_there_are_and_those_it_has_to_wait_for(tmp_path: pathlib.Path) -> None:
    path = script(tmp_path, "echo a:2; echo b:2")
    assert find_worker_slots(host_discovery_script=path, max_replicas=3) == ["a", "a", "b"]
    assert find_worker_slots(host_discovery_script=path, min_replicas=5, max_replicas=8)[4:] == ["a host to come"]


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--min-replicas=1"], "--strategy is auto; add --strategy horovod"),
        (
            ["--strategy=horovod", "--hosts=a:1,b:1", "--max-replicas=5", "--set=train.global_batch_size=8"],
            "train.global_batch_size is 8, too small for 5 replicas",
        ),
        (
            ["--strategy=horovod", "--replicas=4", "--min-replicas=2", "--strict-batch"],
            "train.global_batch_size is 64, which 3 replicas cannot share evenly",
        ),
        (
            ["--strategy=horovod", "--host-discovery-script=/bin/false", "--max-replicas=2"],
            "the host discovery script /bin/false ended with status 1",
        ),
    ],
)
def test_a_wrong_request_ends_the_command_with_status_2(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: list[str], answer: str
) -> None:
    monkeypatch.setattr("sys.argv", ["trainer", "launch", "--data=/nowhere", "--device=cpu", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert answer in " ".join(capfd.readouterr().err.split())


def candidate(
    number: int, host: str, *, step: int | None, run_dir_token: int = 5, checkpoint_step: int = 0
) -> Candidate:
    waiting = Waiting(generation=0, step=step, checkpoint_step=checkpoint_step, run_dir_token=run_dir_token, facts={})
    return Candidate(number, HostSlot(host, 0), waiting)


def test_the_chief_has_the_furthest_state_and_sees_the_run_directory() -> None:
    behind, chief, blind = (
        candidate(0, "a", step=6),
        candidate(1, "b", step=7),
        candidate(2, "c", step=7, run_dir_token=4),
    )
    new = candidate(3, "b", step=None, checkpoint_step=9)
    formed = form_generation([behind, chief, blind, new], run_dir_token=5, max_replicas=4)
    assert formed is not None and not formed.from_checkpoint
    assert formed.members == [chief, new, behind, blind], "the workers of a host are neighbours"
    assert [slot.local_index for slot in formed.worker_slots] == [0, 1, 0, 0]
    assert [slot.num_local for slot in formed.worker_slots] == [2, 2, 1, 1]


def test_where_nobody_has_the_state_in_memory_the_chief_has_the_last_checkpoint() -> None:
    members = [
        candidate(0, "a", step=None, run_dir_token=0),
        candidate(1, "b", step=None, run_dir_token=0, checkpoint_step=9),
    ]
    formed = form_generation(members, run_dir_token=0, max_replicas=2)
    assert formed is not None and formed.from_checkpoint
    assert formed.members[0].number == 1


def test_without_a_member_that_sees_the_run_directory_there_is_no_generation() -> None:
    assert form_generation([candidate(0, "a", step=3, run_dir_token=4)], run_dir_token=5, max_replicas=2) is None


def test_free_slots_are_filled_in_the_order_of_the_hosts_but_for_blocked_ones() -> None:
    hosts = [Host("a", 2), Host("b", 2), Host("c", 2)]
    found = missing_slots(hosts, taken=[HostSlot("a", 0)], blocked=["b"], max_replicas=3)
    assert found == [HostSlot("a", 1), HostSlot("c", 0)]


def test_a_worker_that_joins_later_does_not_refuse_the_run_that_its_launcher_began() -> None:
    arguments = worker_arguments(["launch", "--no-resume", "--gpus=2", "--json"], run_dir="run", dataset_dir="data")
    assert arguments == ["--gpus=2", "--run-dir=run", "--data=data"]
