"""Every check turns red for the fault that it is there for, and for no other."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.k8s.manifest_checks import (
    check_environment,
    check_kinds,
    check_ports,
    check_quantities,
    check_selectors,
    check_volumes,
)
from serving.k8s.pod_security import check_pod_security
from serving.k8s.quantity import parse_quantity
from serving.k8s.workload_checks import ALL_CHECKS, check_manifests, check_model_servers, check_mpi_jobs

Objects = list[dict[str, Any]]
Break = Callable[[dict[str, dict[str, Any]]], object]


def by_kind(objects: Objects) -> dict[str, dict[str, Any]]:
    return {item["kind"]: item for item in objects}


def pod_of(kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = kinds["Deployment"]["spec"]["template"]["spec"]
    return spec


def server(kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    container: dict[str, Any] = pod_of(kinds)["containers"][0]
    return container


def role(kinds: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    replica: dict[str, Any] = kinds["MPIJob"]["spec"]["mpiReplicaSpecs"][name]
    return replica


def worker(kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    container: dict[str, Any] = role(kinds, "Worker")["template"]["spec"]["containers"][0]
    return container


def rename_label(labels: dict[str, str]) -> None:
    labels["app.kubernetes.io/name"] = "other"


def replace_text(config_map: dict[str, Any], file: str, old: str, new: str) -> None:
    assert old in config_map["data"][file]
    config_map["data"][file] = config_map["data"][file].replace(old, new)


def replace_argument(container: dict[str, Any], old: str, new: str | None) -> None:
    index = container["args"].index(old)
    container["args"][index : index + 1] = [] if new is None else [new]


SERVING_FAULTS: list[tuple[Any, str, Break]] = [
    # kinds
    (check_kinds, "no check knows the kind Rollout", lambda k: k["Service"].update(kind="Rollout")),
    # selectors
    (
        check_selectors,
        "Deployment/model-server: the selector",
        lambda k: rename_label(k["Deployment"]["spec"]["selector"]["matchLabels"]),
    ),
    (
        check_selectors,
        "Service/model-server: the selector",
        lambda k: rename_label(k["Service"]["spec"]["selector"]),
    ),
    (check_selectors, "Service/model-server: the selector {}", lambda k: k["Service"]["spec"].pop("selector")),
    (
        check_selectors,
        "PodDisruptionBudget/model-server: the selector",
        lambda k: rename_label(k["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]),
    ),
    (
        check_selectors,
        "NetworkPolicy/model-server: the selector",
        lambda k: rename_label(k["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]),
    ),
    (
        check_selectors,
        "topologySpreadConstraints select",
        lambda k: rename_label(pod_of(k)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]),
    ),
    (
        check_selectors,
        "Service/model-server: the selector",
        lambda k: k["Service"]["metadata"].update(namespace="elsewhere"),
    ),
    # quantities
    (
        check_quantities,
        "resources.limits.memory: '4GiB' is not a quantity",
        lambda k: server(k)["resources"]["limits"].update(memory="4GiB"),
    ),
    (
        check_quantities,
        "resources.requests.memory is 400m, but must be a whole number",
        lambda k: server(k)["resources"]["requests"].update(memory="400m"),
    ),
    (
        check_quantities,
        "requests 3 of cpu, above its limit 2",
        lambda k: server(k)["resources"]["requests"].update(cpu="3"),
    ),
    (
        check_quantities,
        "resources.requests.cpu is -1, which is negative",
        lambda k: server(k)["resources"]["requests"].update(cpu=-1),
    ),
    (
        check_quantities,
        "volume tmp sizeLimit: '256 Mi' is not a quantity",
        lambda k: pod_of(k)["volumes"][2]["emptyDir"].update(sizeLimit="256 Mi"),
    ),
    (
        check_quantities,
        "PersistentVolumeClaim/models: requests.storage: '10GB' is not a quantity",
        lambda k: k["PersistentVolumeClaim"]["spec"]["resources"]["requests"].update(storage="10GB"),
    ),
    # volumes
    (
        check_volumes,
        "container server mounts undefined volume modles",
        lambda k: server(k)["volumeMounts"][0].update(name="modles"),
    ),
    (check_volumes, "volume tmp is mounted by no container", lambda k: server(k)["volumeMounts"].pop()),
    (
        check_volumes,
        "mounts two volumes at /models",
        lambda k: server(k)["volumeMounts"][1].update(mountPath="/models"),
    ),
    (
        check_volumes,
        "volume config is of undefined ConfigMap model-server-config",
        lambda k: k["ConfigMap"]["metadata"].update(name="other"),
    ),
    (
        check_volumes,
        "volume config takes absent.config, which",
        lambda k: pod_of(k)["volumes"][1]["configMap"].update(items=[{"key": "absent.config", "path": "x"}]),
    ),
    (
        check_volumes,
        "volume models is of undefined PersistentVolumeClaim models",
        lambda k: k["PersistentVolumeClaim"]["metadata"].update(name="other"),
    ),
    (
        check_volumes,
        "volume tmp is of undefined Secret s",
        lambda k: pod_of(k)["volumes"][2].update(secret={"secretName": "s"}),
    ),
    # environment
    (check_environment, "uses $(CPU_LIMIT), which its env lacks", lambda k: server(k)["env"].pop(0)),
    (
        check_environment,
        "env CPU_LIMIT reads limits.cpu, which is not set",
        lambda k: server(k)["resources"]["limits"].pop("cpu"),
    ),
    (
        check_environment,
        "env X reads undefined c/k",
        lambda k: server(k)["env"].append({"name": "X", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}),
    ),
    # ports
    (
        check_ports,
        "readinessProbe of container server asks port http, but its ports are 8500, 8501, grpc, rest",
        lambda k: server(k)["readinessProbe"]["httpGet"].update(port="http"),
    ),
    (
        check_ports,
        "livenessProbe of container server asks port 8080",
        lambda k: server(k)["livenessProbe"]["tcpSocket"].update(port=8080),
    ),
    (
        check_ports,
        "Service/model-server: port http is not one of Deployment/model-server",
        lambda k: k["Service"]["spec"]["ports"][1].update(targetPort="http"),
    ),
    (
        check_ports,
        "Service/model-server: port 80 is not one of",
        lambda k: k["Service"]["spec"]["ports"].append({"name": "web", "port": 80}),
    ),
    (
        check_ports,
        "NetworkPolicy/model-server: port http is not one of",
        lambda k: k["NetworkPolicy"]["spec"]["ingress"][0]["ports"][0].update(port="http"),
    ),
    # the model server's own
    (
        check_model_servers,
        "--rest_api_port=8502 is none of its ports 8500, 8501",
        lambda k: replace_argument(server(k), "--rest_api_port=8501", "--rest_api_port=8502"),
    ),
    (
        check_model_servers,
        "--rest_api_port= is none of its ports",
        lambda k: replace_argument(server(k), "--rest_api_port=8501", None),
    ),
    (
        check_model_servers,
        "--batching_parameters_file without --enable_batching=true does not start",
        lambda k: replace_argument(server(k), "--enable_batching=true", None),
    ),
    (
        check_model_servers,
        "--tensorflow_intra_op_parallelism is not set",
        lambda k: replace_argument(server(k), "--tensorflow_intra_op_parallelism=$(CPU_LIMIT)", None),
    ),
    (
        check_model_servers,
        "batching.config is a file that no mounted ConfigMap holds",
        lambda k: k["ConfigMap"]["data"].pop("batching.config"),
    ),
    (
        check_model_servers,
        "startupProbe asks /v1/models/model/metadata, but its models.config serves digits",
        lambda k: replace_text(k["ConfigMap"], "models.config", 'name: "model"', 'name: "digits"'),
    ),
    (
        check_model_servers,
        "readinessProbe asks /v1/models/model, but",
        lambda k: server(k)["readinessProbe"]["httpGet"].update(path="/v1/models/model"),
    ),
    (
        check_model_servers,
        "base_path /srv/model of its models.config lies on no volume",
        lambda k: replace_text(k["ConfigMap"], "models.config", "/models/model", "/srv/model"),
    ),
    (
        check_model_servers,
        "its models.config names no model",
        lambda k: k["ConfigMap"]["data"].update({"models.config": '# name: "model"'}),
    ),
    (check_model_servers, "it has no startupProbe", lambda k: server(k).pop("startupProbe")),
]

SECURITY_FAULTS: list[tuple[str, Break]] = [
    ("sets hostNetwork", lambda k: pod_of(k).update(hostNetwork=True)),
    ("volume tmp is a hostPath", lambda k: pod_of(k)["volumes"][2].update(hostPath={"path": "/"})),
    (
        "sets the sysctl kernel.msgmax",
        lambda k: pod_of(k)["securityContext"].update(sysctls=[{"name": "kernel.msgmax", "value": "1"}]),
    ),
    ("is privileged", lambda k: server(k)["securityContext"].update(privileged=True)),
    (
        "must set allowPrivilegeEscalation: false",
        lambda k: server(k)["securityContext"].pop("allowPrivilegeEscalation"),
    ),
    ("must set runAsNonRoot: true", lambda k: pod_of(k)["securityContext"].pop("runAsNonRoot")),
    ("must set runAsNonRoot: true", lambda k: server(k)["securityContext"].update(runAsNonRoot=False)),
    ("runs as user 0", lambda k: server(k)["securityContext"].update(runAsUser=0)),
    ("must set seccompProfile.type", lambda k: pod_of(k)["securityContext"].pop("seccompProfile")),
    (
        "must set seccompProfile.type",
        lambda k: server(k)["securityContext"].update(seccompProfile={"type": "Unconfined"}),
    ),
    ("unsets AppArmor", lambda k: server(k)["securityContext"].update(appArmorProfile={"type": "Unconfined"})),
    ("sets SELinux options", lambda k: pod_of(k)["securityContext"].update(seLinuxOptions={"type": "spc_t"})),
    ("changes procMount", lambda k: server(k)["securityContext"].update(procMount="Unmasked")),
    ("must drop ALL capabilities", lambda k: server(k)["securityContext"]["capabilities"].update(drop=["KILL"])),
    (
        "adds the capabilities SYS_ADMIN",
        lambda k: server(k)["securityContext"]["capabilities"].update(add=["NET_BIND_SERVICE", "SYS_ADMIN"]),
    ),
    ("takes a hostPort", lambda k: server(k)["ports"][0].update(hostPort=8500)),
    ("names a host", lambda k: server(k)["livenessProbe"]["tcpSocket"].update(host="example.com")),
    (
        "must set readOnlyRootFilesystem: true",
        lambda k: server(k)["securityContext"].pop("readOnlyRootFilesystem"),
    ),
    (
        "container init must set runAsNonRoot",
        lambda k: pod_of(k).update(
            initContainers=[{"name": "init", "securityContext": {"runAsNonRoot": False, "runAsUser": 0}}]
        ),
    ),
]

MPI_FAULTS: list[tuple[Any, str, Break]] = [
    (
        check_mpi_jobs,
        "slotsPerWorker is 4, but a worker has 8 GPUs",
        lambda k: k["MPIJob"]["spec"].update(slotsPerWorker=4),
    ),
    (check_mpi_jobs, "the Launcher has 2 replicas, and must have 1", lambda k: role(k, "Launcher").update(replicas=2)),
    (
        check_mpi_jobs,
        "the Launcher holds 1 GPUs and computes nothing",
        lambda k: role(k, "Launcher")["template"]["spec"]["containers"][0]["resources"]["limits"].update(
            {"nvidia.com/gpu": "1"}
        ),
    ),
    (
        check_mpi_jobs,
        "it must have a Launcher and a Worker",
        lambda k: k["MPIJob"]["spec"]["mpiReplicaSpecs"].pop("Worker"),
    ),
    (check_mpi_jobs, "they have no readinessProbe", lambda k: worker(k).pop("readinessProbe")),
    (check_mpi_jobs, "cannot listen on port 22", lambda k: worker(k)["ports"][0].update(containerPort=22)),
    (check_mpi_jobs, "is longer than 63 characters", lambda k: k["MPIJob"]["metadata"].update(name="t" * 60)),
    (
        check_quantities,
        "request 4 and limit 8 of nvidia.com/gpu must be equal",
        lambda k: worker(k)["resources"]["requests"].update({"nvidia.com/gpu": "4"}),
    ),
    (
        check_quantities,
        "resources.limits.nvidia.com/gpu is 500m, but must be a whole number",
        lambda k: worker(k)["resources"]["limits"].update({"nvidia.com/gpu": "500m"}),
    ),
    (
        check_volumes,
        "MPIJob/train Worker: volume data is of undefined PersistentVolumeClaim training-dat",
        lambda k: role(k, "Worker")["template"]["spec"]["volumes"][1]["persistentVolumeClaim"].update(
            claimName="training-dat"
        ),
    ),
    (
        check_pod_security,
        "MPIJob/train Worker: container worker must drop ALL capabilities",
        lambda k: worker(k)["securityContext"].pop("capabilities"),
    ),
]


def problems_after(tree: Objects, broken: Break) -> dict[Any, list[str]]:
    objects = copy.deepcopy(tree)
    assert check_manifests(objects) == []
    broken(by_kind(objects))
    return {check: [str(problem) for problem in check(objects)] for check in ALL_CHECKS}


@pytest.mark.parametrize(("check", "told", "broken"), SERVING_FAULTS)
def test_a_fault_of_a_serving_manifest_is_found_and_named(
    trees: dict[str, Objects], check: Any, told: str, broken: Break
) -> None:
    # kustomize gives the ConfigMap a name that depends on its content; a fault is made after rendering.
    problems = problems_after(trees["serving"], broken)
    assert any(told in problem for problem in problems[check]), problems


@pytest.mark.parametrize(("told", "broken"), SECURITY_FAULTS)
def test_what_pod_security_restricted_refuses_is_found(trees: dict[str, Objects], told: str, broken: Break) -> None:
    problems = problems_after(trees["serving"], broken)
    assert any(told in problem for problem in problems[check_pod_security]), problems


@pytest.mark.parametrize(("check", "told", "broken"), MPI_FAULTS)
def test_a_fault_of_an_mpijob_is_found_and_named(
    trees: dict[str, Objects], check: Any, told: str, broken: Break
) -> None:
    problems = problems_after(trees["training"], broken)
    assert any(told in problem for problem in problems[check]), problems


def test_every_check_has_a_fault_of_its_own() -> None:
    tested = {check for check, _, _ in [*SERVING_FAULTS, *MPI_FAULTS]} | {check_pod_security}
    assert tested == set(ALL_CHECKS)


def test_a_fault_is_found_in_an_object_alone(trees: dict[str, Objects]) -> None:
    (loader,) = trees["serving-loader"]
    assert [str(problem) for problem in check_manifests([loader])] == [
        "Pod/model-loader: volume models is of undefined PersistentVolumeClaim models"
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", "0"), (2, "2"), (0.5, "0.5"), ("500m", "0.5"), ("1k", "1000"), ("1Ki", "1024"), ("1.5Gi", "1610612736"),
        ("1e3", "1000"), ("1E3", "1000"), ("2E", "2e18"), ("-1", "-1"), (".5", "0.5"), ("100u", "0.0001"),
    ],
)  # fmt: skip
def test_quantities_are_kubernetes(text: Any, value: str) -> None:
    assert parse_quantity(text) == parse_quantity(value)
    assert float(parse_quantity(text)) == float(value)


@pytest.mark.parametrize("text", ["", "1 Gi", "1GiB", "1gi", "1K", "Gi", "1..2", "0x10", "1e", "--1", "1mi", "٣"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["Ki", "Mi", "Gi", "Ti"]))
def test_binary_suffixes_are_powers_of_1024(number: int, suffix: str) -> None:
    power = ["Ki", "Mi", "Gi", "Ti"].index(suffix) + 1
    assert parse_quantity(f"{number}{suffix}") == number * 1024**power
