"""What a job computes on is what its hosts have: they are asked, and the machine that launches it may have nothing."""

import json
import os
import pathlib
import sys
from typing import Any

import pytest

from trainer.config.config import load_config
from trainer.data.dataset.storage import parse_path
from trainer.errors import DeviceError
from trainer.launch.plan_run import PlannedRun, plan_run
from trainer.plan.plan import make_plan
from trainer.system import tf_runtime

pytestmark = pytest.mark.slow

# In place of ssh and of the guard behind it: answers for a host as one with TensorFlow and GPUs would.
HOST = """#!{python}
import json, os, sys
name = sys.argv[-2]
if not os.path.exists(os.path.join({hosts!r}, name)):
    sys.exit(f"ssh: connect to host {{name}} port 22: No route to host")
def report(kind, **content):
    print(json.dumps({{"report": kind, **content}}), file=sys.stderr, flush=True)
report("ready", host=name, address="10.0.0.1", interface="eth0", port=1, launcher_address="10.0.0.2", time=0.0, versions={{}})
for line in sys.stdin:
    if json.loads(line)["order"] == "start":
        print(open(os.path.join({hosts!r}, name)).read(), flush=True)
        report("ended", status=0, signal=0)
        break
"""  # noqa: E501


@pytest.fixture
def hosts(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets up hosts by name, with the compute capabilities of their GPUs."""
    programs, answers = tmp_path / "bin", tmp_path / "hosts"
    programs.mkdir()
    answers.mkdir()
    (programs / "ssh").write_text(HOST.format(python=sys.executable, hosts=str(answers)))
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)

    def set_up(has_nccl: bool | None = None, **capabilities: list[tuple[int, int]]) -> None:
        for name, found in capabilities.items():
            answer = json.dumps({"compute_capabilities": found, "has_nccl": has_nccl})
            (answers / f"{name}.invalid").write_text(f"a line of a library\ndevices of this host: {answer}")

    return set_up


def plan(dataset: pathlib.Path, run_dir: pathlib.Path, *settings: str) -> PlannedRun:
    config = load_config(overrides=[f"data.path={dataset}", "distribute.strategy=multiworker", *settings])
    return plan_run(config, run_dir=run_dir, resume=True, note=lambda _: None)


A100, V100 = (8, 0), (7, 0)


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_a_machine_without_gpus_plans_what_its_hosts_with_gpus_will_record(
    device: str, hosts: Any, digits: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    hosts(a=[A100, A100], b=[A100])
    planned = plan(digits, tmp_path / "run", "distribute.hosts=a.invalid:2,b.invalid", f"distribute.device={device}")
    found, replicas = planned.plan, planned.plan.replicas
    assert (replicas.device, replicas.precision, replicas.num_workers) == ("gpu", "mixed_bfloat16", 3)
    assert replicas.jit_compile
    told = ["distribute.device=gpu", "distribute.precision=mixed_bfloat16", "distribute.xla=on"]
    assert planned.device_arguments == [f"--{setting.removeprefix('distribute.')}" for setting in told]
    # A worker plans the same run from what it is told, whatever its own GPU; so does the same command afterwards.
    config = planned.config.model_copy(
        update={"distribute": planned.config.distribute.model_copy(update={"precision": "mixed_bfloat16"})}
    )
    of_worker = make_plan(config, parse_path(str(digits)), planned.topology, [V100])
    assert of_worker == found
    assert of_worker.identity(config) == found.identity(planned.config)


def test_the_oldest_gpu_that_is_used_decides_for_all(hosts: Any, digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    hosts(a=[A100, V100], b=[V100])
    used = "distribute.hosts=a.invalid:1,b.invalid:1"
    assert plan(digits, tmp_path / "run", used).plan.replicas.precision == "mixed_float16"
    assert plan(digits, tmp_path / "run", "distribute.hosts=a.invalid:1").plan.replicas.precision == "mixed_bfloat16"


def test_hosts_without_gpus_train_on_their_cpus(hosts: Any, digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    hosts(a=[], b=[])
    planned = plan(digits, tmp_path / "run", "distribute.hosts=a.invalid:2,b.invalid:2")
    replicas = planned.plan.replicas
    assert (replicas.device, replicas.precision, replicas.jit_compile) == ("cpu", "float32", False)
    assert planned.device_arguments == ["--device=cpu", "--precision=float32", "--xla=off"]


@pytest.mark.parametrize(
    ("found", "settings", "message"),
    [
        ({"a": [A100], "b": []}, ["distribute.hosts=a.invalid,b.invalid"], "b.invalid takes 1 worker, .* no GPU"),
        ({"a": [A100]}, ["distribute.hosts=a.invalid:8"], "a.invalid takes 8 workers, .* 1 GPU there; give it 1"),
        ({"a": []}, ["distribute.hosts=a.invalid", "distribute.device=gpu"], "a.invalid takes 1 worker, .* no GPU"),
        ({"a": [A100]}, ["distribute.hosts=a.invalid,gone.invalid"], "gone.invalid .*No route to host"),
    ],
)
def test_hosts_that_have_not_what_the_job_needs_are_named_before_the_start(
    found: dict, settings: list[str], message: str, hosts: Any, digits: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    hosts(**found)
    with pytest.raises(DeviceError, match=message):
        plan(digits, tmp_path / "run", *settings)


@pytest.mark.parametrize(("has_nccl", "message"), [(False, "is built without it"), (None, "is not there")])
def test_horovod_on_gpus_of_other_hosts_needs_nccl_there(
    has_nccl: bool | None, message: str, hosts: Any, digits: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    hosts(has_nccl, a=[A100])
    job = ("distribute.hosts=a.invalid", "distribute.strategy=horovod")
    with pytest.raises(
        DeviceError, match=f"needs a Horovod with NCCL, and the one on a.invalid {message}.*make horovod"
    ):
        plan(digits, tmp_path / "run", *job)
    hosts(True, a=[A100])
    assert plan(digits, tmp_path / "run", *job).plan.replicas.device == "gpu"


@pytest.mark.horovod
@pytest.mark.parametrize("job", [(), ("distribute.min_replicas=1",)], ids=["fixed", "elastic"])
def test_horovod_on_gpus_of_this_machine_needs_nccl(
    job: tuple[str, ...], digits: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Horovod is the one that is installed; the GPUs are not there."""
    hvd = pytest.importorskip("horovod.tensorflow")
    monkeypatch.setattr(tf_runtime, "list_gpus", lambda: ["one", "another"])
    monkeypatch.setattr(tf_runtime, "list_compute_capabilities", lambda gpus: [A100] * len(gpus))
    if hvd.nccl_built():
        assert plan(digits, tmp_path / "run", "distribute.strategy=horovod", *job).plan.replicas.device == "gpu"
        return
    with pytest.raises(DeviceError, match="needs a Horovod with NCCL, and the one on this machine is built without it"):
        plan(digits, tmp_path / "run", "distribute.strategy=horovod", *job)
