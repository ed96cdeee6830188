"""Check manifests for what TensorFlow Serving and MPI need beyond Kubernetes."""

import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

from serving.k8s.manifest_checks import (
    PROBES,
    STRUCTURE_CHECKS,
    Check,
    Objects,
    Pods,
    Problem,
    find_config_map,
    find_pods,
    where,
)
from serving.k8s.pod_security import check_pod_security

MODEL_SERVER = "tensorflow_model_server"
_GPU = "nvidia.com/gpu"
_PORT_FLAGS = ("port", "rest_api_port")
# These default to the node's number of cores.
_THREAD_FLAGS = ("tensorflow_intra_op_parallelism", "tensorflow_inter_op_parallelism", "rest_api_num_threads")
_MAX_HOST_NAME = 63


def check_model_servers(objects: Objects) -> Iterator[Problem]:
    """Find flags of TensorFlow Serving without their file or port in the container, and probes of other models."""
    for pods in find_pods(objects):
        for container in pods.spec["containers"]:
            if posixpath.basename((container.get("command") or [""])[0]) == MODEL_SERVER:
                flags = _flags(container.get("args", []))
                files = _mounted_files(pods, container, objects)
                for rule in (*_flag_rules(flags, container, files), *_model_rules(flags, container, files)):
                    yield Problem(pods.where, f"container {container['name']}: {rule}")


def check_mpi_jobs(objects: Objects) -> Iterator[Problem]:
    """Find MPIJobs whose slots, GPUs and launcher do not match, or that the operator would refuse."""
    for item in objects:
        if item["kind"] == "MPIJob":
            for rule in _mpi_rules(item["metadata"]["name"], item["spec"]):
                yield Problem(where(item), rule)


ALL_CHECKS: tuple[Check, ...] = (*STRUCTURE_CHECKS, check_pod_security, check_model_servers, check_mpi_jobs)


def check_manifests(objects: Objects) -> list[Problem]:
    """Run every check over all objects that are applied together."""
    return [problem for check in ALL_CHECKS for problem in check(objects)]


def _flags(arguments: list[str]) -> dict[str, str]:
    pairs = (argument.removeprefix("--").partition("=") for argument in arguments)
    return {name: value or "true" for name, _, value in pairs}


def _mounted_files(pods: Pods, container: Mapping[str, Any], objects: Objects) -> dict[str, str]:
    """Return the content, by path, of all files from ConfigMaps in the container."""
    volumes = {volume["name"]: volume for volume in pods.spec.get("volumes", [])}
    files = {}
    for mount in container.get("volumeMounts", []):
        source = volumes.get(mount["name"], {}).get("configMap")
        if source:
            content = find_config_map(objects, pods.namespace, source["name"]) or {}
            files.update({posixpath.join(mount["mountPath"], name): text for name, text in content.items()})
    return files


def _flag_rules(flags: Mapping[str, str], container: Mapping[str, Any], files: Mapping[str, str]) -> Iterator[str]:
    ports = {str(port["containerPort"]) for port in container.get("ports", [])}
    for name in _PORT_FLAGS:
        if flags.get(name) not in ports:
            yield f"--{name}={flags.get(name, '')} is none of its ports {', '.join(sorted(ports)) or '(none)'}"
    for name in _THREAD_FLAGS:
        if name not in flags:
            yield f"--{name} is not set, so it comes from the cores of the node and not from the CPU limit"
    for name, value in flags.items():
        if name.endswith(("_config_file", "_parameters_file")) and value not in files:
            yield f"--{name}={value} is a file that no mounted ConfigMap holds"
    if "batching_parameters_file" in flags and flags.get("enable_batching") != "true":
        yield "--batching_parameters_file without --enable_batching=true does not start"


def _model_rules(flags: Mapping[str, str], container: Mapping[str, Any], files: Mapping[str, str]) -> Iterator[str]:
    config = re.sub(r"#.*", "", files.get(flags.get("model_config_file", ""), ""))
    names = re.findall(r'\bname\s*:\s*"([^"]*)"', config)
    if not names:
        yield "its models.config names no model"
        return
    mounts = [mount["mountPath"].rstrip("/") + "/" for mount in container.get("volumeMounts", [])]
    for path in re.findall(r'\bbase_path\s*:\s*"([^"]*)"', config):
        if not any(path.startswith(mount) for mount in mounts):
            yield f"the base_path {path} of its models.config lies on no volume"
    for probe in PROBES:
        path = container.get(probe, {}).get("httpGet", {}).get("path")
        if path is not None and path not in {f"/v1/models/{name}/metadata" for name in names}:
            yield f"{probe} asks {path}, but its models.config serves {', '.join(names)}"
    for probe in ("startupProbe", "readinessProbe"):
        if probe not in container:
            yield f"it has no {probe}, so requests come before the model is loaded"


def _mpi_rules(name: str, spec: Mapping[str, Any]) -> Iterator[str]:
    launcher, worker = (spec["mpiReplicaSpecs"].get(role) for role in ("Launcher", "Worker"))
    if launcher is None or worker is None:
        yield "it must have a Launcher and a Worker"
        return
    if launcher.get("replicas") != 1:
        yield f"the Launcher has {launcher.get('replicas')} replicas, and must have 1"
    last_worker = f"{name}-worker-{worker.get('replicas', 1) - 1}"
    if len(last_worker) > _MAX_HOST_NAME:
        yield f"the host name {last_worker} is longer than {_MAX_HOST_NAME} characters; shorten the name of the job"
    gpus = [_num_gpus(role["template"]["spec"]) for role in (launcher, worker)]
    if gpus[0]:
        yield f"the Launcher holds {gpus[0]} GPUs and computes nothing"
    slots = spec.get("slotsPerWorker", 1)
    if gpus[1] and gpus[1] != slots:
        yield f"slotsPerWorker is {slots}, but a worker has {gpus[1]} GPUs: one rank drives one"
    container = worker["template"]["spec"]["containers"][0]
    if spec.get("launcherCreationPolicy") == "WaitForWorkersReady" and "readinessProbe" not in container:
        yield "the launcher waits for ready workers, but they have no readinessProbe: they are ready before their sshd"
    for port in container.get("ports", []):
        if port["containerPort"] < 1024:
            yield f"sshd of an ordinary user cannot listen on port {port['containerPort']}; take one above 1023"


def _num_gpus(pod_spec: Mapping[str, Any]) -> int:
    limits = [str(c.get("resources", {}).get("limits", {}).get(_GPU, 0)) for c in pod_spec["containers"]]
    return sum(int(limit) for limit in limits if limit.isdecimal())  # check_quantities reports fractions
