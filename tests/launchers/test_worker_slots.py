"""Who a process is: from `--hosts`, and from what mpirun, Slurm, Kubernetes and horovodrun put into the environment."""

import json
import re

import hypothesis
import pytest
from hypothesis import strategies as st
from typer.testing import CliRunner

from trainer.cli.app import app
from trainer.config.distribute import DistributeConfig
from trainer.distribute.launchers import heartbeat
from trainer.distribute.launchers.environments import multiworker_environments
from trainer.distribute.launchers.external import ExternalWorker, find_external_worker
from trainer.distribute.launchers.hosts import Host, assign_slots, parse_hosts
from trainer.distribute.launchers.proxies import go_directly
from trainer.distribute.launchers.versions import differences
from trainer.distribute.launchers.worker import Ready
from trainer.errors import ConfigError, DeviceError, UsageError
from trainer.launch.job import find_worker_slots

TF_CONFIG = json.dumps({"cluster": {"worker": ["a:1", "b:1", "b:2", "c:1"]}, "task": {"type": "worker", "index": 2}})
ONE_WORKER = json.dumps({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"HOROVOD_RANK": "3", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_RANK": "1"}, ("HOROVOD_RANK", 3, 4, 1)),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
            ("OMPI_COMM_WORLD_RANK", 1, 2, 0),
        ),
        ({"PMI_RANK": "1", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1"}, ("PMI_RANK", 1, 8, 1)),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}, ("SLURM_PROCID", 5, 8, 1)),
        # A shell of an interactive allocation is a task of one.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0"}, None),
        # A batch script is no task that srun has started: it may start workers on the nodes by --hosts.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, None),
        # Where Slurm does not say how many tasks the step has, those of the job are meant, but only inside a step.
        (
            {"SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"},
            ("SLURM_PROCID", 1, 2, 1),
        ),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_NODELIST": "n[1-2]"}, None),
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": str(2**32 - 6), "SLURM_NTASKS": "8"}, None),
        # A shell that srun --pty has opened: its tasks but the first have no terminal.
        (
            {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PTY_PORT": "4000", "SLURM_TASK_PID": "1"},
            None,
        ),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PTY_PORT": "4000"}, ("SLURM_PROCID", 1, 2, 0)),
        # A starter of one process does not hide one of several.
        ({"TF_CONFIG": ONE_WORKER, "PMI_RANK": "1", "PMI_SIZE": "2"}, ("PMI_RANK", 1, 2, 0)),
        ({"TF_CONFIG": ONE_WORKER}, ("TF_CONFIG", 0, 1, 0)),
        ({"TF_CONFIG": '{"cluster": {"chief": ["a:1"]}, "task": {"type": "chief", "index": 0}}'}, None),
        ({"RANK": "colonel", "WORLD_SIZE": "2"}, None),
        # mpirun inside a Slurm job knows better than Slurm.
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_STEP_NUM_TASKS": "2",
                "OMPI_COMM_WORLD_RANK": "7",
                "OMPI_COMM_WORLD_SIZE": "16",
                "OMPI_COMM_WORLD_LOCAL_RANK": "7",
            },
            ("OMPI_COMM_WORLD_RANK", 7, 16, 7),
        ),
        ({"TF_CONFIG": TF_CONFIG}, ("TF_CONFIG", 2, 4, 1)),
        ({"TF_CONFIG": "{}"}, None),
    ],
)
def test_the_place_is_what_the_starter_says(environment: dict[str, str], expected: tuple | None) -> None:
    found = find_external_worker(environment)
    wanted = expected and ExternalWorker(
        by=expected[0], worker_index=expected[1], num_workers=expected[2], local_index=expected[3]
    )
    assert found == wanted


@pytest.mark.parametrize(
    "environment",
    [
        {"TF_CONFIG": "not json"},
        {"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}'},
        {"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}'},
        {"HOROVOD_RANK": "first", "HOROVOD_SIZE": "4"},
    ],
)
def test_a_wrong_environment_is_an_error_that_shows_it(environment: dict[str, str]) -> None:
    (value,) = (v for k, v in environment.items() if k != "HOROVOD_SIZE")
    with pytest.raises(ConfigError, match="expected" if "cluster" in value else re.escape(value)):
        find_external_worker(environment)


NAMES = st.from_regex(r"[a-z][a-z0-9.-]{0,10}", fullmatch=True)


@hypothesis.given(st.dictionaries(NAMES, st.integers(1, 16), min_size=1, max_size=6))
def test_hosts_are_read_back_and_every_slot_is_one_worker(hosts: dict[str, int]) -> None:
    parsed = parse_hosts(",".join(f"{name}:{slots}" for name, slots in hosts.items()))
    assert parsed == [Host(name, slots) for name, slots in hosts.items()]
    slots = assign_slots(parsed)
    assert [slot.worker_index for slot in slots] == list(range(sum(hosts.values())))
    for host in parsed:
        here = [slot for slot in slots if slot.host == host]
        assert [slot.local_index for slot in here] == list(range(host.num_slots))
        assert {slot.num_local for slot in here} == {host.num_slots}


@pytest.mark.parametrize(
    "text", ["", "a:8,", "a:0", "a:8,a:2", "a:b", "a b", "a:8;b:8", "-oProxyCommand=x:1", "-x@a:1"]
)
def test_wrong_hosts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--hosts"):
        parse_hosts(text)


def test_users_and_addresses_are_hosts_too() -> None:
    assert parse_hosts("me@node1:2,[fe80::1]:4,10.0.0.1") == [
        Host("me@node1", 2),
        Host("[fe80::1]", 4),
        Host("10.0.0.1", 1),
    ]


def test_tf_config_names_every_worker_to_every_worker() -> None:
    slots = assign_slots(parse_hosts("a:1,b:2"))
    ready = [
        Ready(host="h", address=a, interface="e", port=p, launcher_address="l", time=0.0, versions={})
        for a, p in (("10.0.0.1", 5), ("10.0.0.2", 6), ("fd00::1", 7))
    ]
    for i, environment in enumerate(multiworker_environments(slots, ready)):
        content = json.loads(environment["TF_CONFIG"])
        assert content["cluster"]["worker"] == ["10.0.0.1:5", "10.0.0.2:6", "[fd00::1]:7"]
        assert content["task"] == {"type": "worker", "index": i}
        found = find_external_worker(environment)
        assert found is not None
        assert found.worker_index == i


def test_what_differs_between_hosts_is_named_with_its_values() -> None:
    same = {"a": {"keras": "3.15", "python": "3.11.7"}, "b": {"keras": "3.15", "python": "3.11.7"}}
    assert differences(same) == []
    same["b"]["keras"] = "3.14"
    assert differences(same) == ["keras is 3.15 on a, 3.14 on b"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hosts": "a:2"}, "needs a strategy of several processes"),
        ({"hosts": "a:2,b:2", "strategy": "horovod", "replicas": 3, "device": "cpu"}, "has places for 4"),
        ({"strategy": "multiworker", "gpus": 4}, "4 GPUs asked for"),
    ],
)
def test_a_job_that_does_not_add_up_is_refused_before_the_start(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        find_worker_slots(DistributeConfig(**settings), num_gpus_found=2)
    assert isinstance(raised.value, ConfigError | DeviceError)


SEVERAL_PROCESSES = [
    ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE is 2", "add --strategy horovod"),
    ({"PMI_RANK": "1", "PMI_SIZE": "4"}, "PMI_SIZE is 4", "add --strategy horovod"),
    ({"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2"}, "HOROVOD_SIZE is 2", "add --strategy horovod"),
    ({"PMIX_RANK": "1"}, "PMIX_RANK is 1", "add --strategy horovod"),
    ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS is 2", "add --strategy multiworker"),
    (
        {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"},
        "SLURM_NTASKS is 2",
        "add --strategy multiworker",
    ),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE is 2", "add --strategy horovod"),
    ({"TF_CONFIG": TF_CONFIG}, "TF_CONFIG names 4 workers", "add --strategy multiworker"),
    ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE is 2", "run the command once, with --strategy"),
]


@pytest.mark.parametrize("strategy", ["auto", "single", "mirrored"])
@pytest.mark.parametrize(("environment", "evidence", "fix"), SEVERAL_PROCESSES)
def test_one_of_several_processes_does_not_train_alone(
    strategy: str, environment: dict[str, str], evidence: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as raised:
        find_worker_slots(DistributeConfig(strategy=strategy), num_gpus_found=0)
    message = str(raised.value)
    assert evidence in message and fix in message and f"--strategy is {strategy}" in message
    ended = CliRunner().invoke(app, ["launch", "--recipe=auto", f"--strategy={strategy}", "--data=nowhere"])
    assert str(ended.exception) == message, "said before a folder is looked at, or TensorFlow started"
    # What it advises for variables that nobody stands behind.
    for name in re.findall(r"-u (\w+)", message):
        monkeypatch.delenv(name)
    assert find_worker_slots(DistributeConfig(strategy=strategy), num_gpus_found=0) == []


def test_a_strategy_of_several_processes_has_a_place_for_each_replica() -> None:
    on_cpu = DistributeConfig(strategy="horovod", device="cpu", replicas=3)
    assert len(find_worker_slots(on_cpu, num_gpus_found=0)) == 3
    assert len(find_worker_slots(DistributeConfig(strategy="multiworker"), num_gpus_found=4)) == 4
    assert find_worker_slots(DistributeConfig(strategy="mirrored"), num_gpus_found=4) == []


SIZE_ONE = [
    {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"},
    {"PMI_RANK": "0", "PMI_SIZE": "1"},
    {"HOROVOD_RANK": "0", "HOROVOD_SIZE": "1"},
    {"TF_CONFIG": ONE_WORKER},
    {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"},
]


@pytest.mark.parametrize("environment", SIZE_ONE)
def test_a_starter_of_one_process_leaves_it_to_the_command_to_start_what_is_asked_for(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    on_cpu = DistributeConfig(device="cpu", replicas=2)
    assert find_worker_slots(on_cpu, num_gpus_found=0) == [], "mirrored: in this process"
    for strategy in ("multiworker", "horovod"):
        assert len(find_worker_slots(on_cpu.model_copy(update={"strategy": strategy}), num_gpus_found=0)) == 2
        assert len(find_worker_slots(DistributeConfig(strategy=strategy, hosts="a:2,b:2"), num_gpus_found=0)) == 4
    elastic = DistributeConfig(strategy="horovod", device="cpu", replicas=2, min_replicas=1)
    assert len(find_worker_slots(elastic, num_gpus_found=0)) == 2


def test_a_worker_of_one_that_this_project_has_started_starts_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", ONE_WORKER)
    monkeypatch.setenv(heartbeat.VARIABLE, "3")
    assert find_worker_slots(DistributeConfig(strategy="multiworker", hosts="a:1"), num_gpus_found=0) == []


def test_the_hosts_of_the_workers_are_exceptions_beside_those_that_the_user_has_named() -> None:
    environment = {"no_proxy": "example.org, .local", "NO_PROXY": "example.org", "no_grpc_proxy": "other"}
    go_directly(["10.0.0.1:2222", "[fd00::1]:2222", "node1:2222", "node1:2223"], environment)
    assert environment["no_proxy"] == environment["NO_PROXY"] == "example.org,.local,10.0.0.1,fd00::1,node1"
    assert environment["no_grpc_proxy"] == "other,10.0.0.1,fd00::1,node1", "gRPC reads this one alone, where it is set"
    without: dict[str, str] = {}
    go_directly(["node1:1"], without)
    assert without == {"no_proxy": "node1", "NO_PROXY": "node1"}
