"""The MPIJob runs a `trainer launch` line that the command line of this very version takes."""

from typing import Any

import pytest
import typer.main

from trainer.cli.app import app


def launch_arguments(job: dict[str, Any]) -> list[str]:
    """What follows `trainer launch` among the arguments of mpirun."""
    container = job["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["mpirun"]
    start = container["args"].index("trainer")
    assert container["args"][start : start + 2] == ["trainer", "launch"]
    return list(container["args"][start + 2 :])


def parse_launch(arguments: list[str]) -> dict[str, Any]:
    """The values that `trainer launch` would run with; raises what it would. Nothing is run."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands["launch"].make_context("launch", list(arguments)).params)


@pytest.fixture
def job(trees: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    (found,) = (item for item in trees["training"] if item["kind"] == "MPIJob")
    return found


def test_the_jobs_launch_line_is_accepted(job: dict[str, Any]) -> None:
    values = parse_launch(launch_arguments(job))
    assert values["data"] == "/data"
    assert str(values["run_dir"]) == "/runs/train"
    assert values["strategy"] == "horovod"


def test_a_launch_line_with_an_unknown_flag_is_not(job: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="No such option"):
        parse_launch([*launch_arguments(job), "--stratgy", "horovod"])


def test_data_and_runs_lie_on_the_workers_volumes(job: dict[str, Any]) -> None:
    values = parse_launch(launch_arguments(job))
    worker = job["spec"]["mpiReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    read_only = {mount["mountPath"]: mount.get("readOnly", False) for mount in worker["volumeMounts"]}
    assert read_only[values["data"]] is True
    assert read_only[str(values["run_dir"].parent)] is False
