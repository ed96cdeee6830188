"""The trees under k8s/: they render, every object passes its strict schema, and what they say fits together."""

import importlib.resources
import subprocess
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from google.protobuf import text_format
from strict_schemas import validate

from serving.k8s.workload_checks import check_manifests

Trees = dict[str, list[dict[str, Any]]]


def one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (item for item in objects if item["kind"] == kind)
    return found


def test_every_tree_renders(trees: Trees) -> None:
    assert {name: sorted(item["kind"] for item in objects) for name, objects in trees.items()} == {
        "serving": [
            "ConfigMap",
            "Deployment",
            "NetworkPolicy",
            "PersistentVolumeClaim",
            "PodDisruptionBudget",
            "Service",
        ],
        "serving-loader": ["Pod"],
        "training": ["ConfigMap", "MPIJob", "PersistentVolumeClaim", "PersistentVolumeClaim"],
        "training-kueue": ["ConfigMap", "MPIJob", "PersistentVolumeClaim", "PersistentVolumeClaim"],
    }


@pytest.mark.parametrize("name", ["serving", "serving-loader", "training", "training-kueue"])
def test_every_object_passes_its_strict_schema(trees: Trees, name: str) -> None:
    for item in trees[name]:
        validate(item)


@pytest.mark.parametrize("names", [("serving", "serving-loader"), ("training",), ("training-kueue",)])
def test_objects_that_are_applied_together_fit_together(trees: Trees, names: tuple[str, ...]) -> None:
    assert check_manifests([item for name in names for item in trees[name]]) == []


def test_no_tree_names_a_namespace(trees: Trees) -> None:
    assert [item for objects in trees.values() for item in objects if "namespace" in item["metadata"]] == []


def test_an_unknown_kind_has_no_schema_and_fails() -> None:
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        validate({"apiVersion": "example.com/v1", "kind": "Unheard", "metadata": {"name": "x"}})


def test_the_servers_models_config_is_a_model_server_config(trees: Trees) -> None:
    from tensorflow_serving.config import model_server_config_pb2

    text = one(trees["serving"], "ConfigMap")["data"]["models.config"]
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("model", "/models/model", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 1


def test_the_server_is_the_binary_with_the_pinned_image(trees: Trees) -> None:
    (container,) = one(trees["serving"], "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "tensorflow/serving:2.20.0"
    assert container["command"] == ["/usr/bin/tensorflow_model_server"]


def test_a_stopping_server_serves_on_longer_than_the_endpoints_need(trees: Trees) -> None:
    pod = one(trees["serving"], "Deployment")["spec"]["template"]["spec"]
    sleep_secs = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert 10 <= sleep_secs < pod["terminationGracePeriodSeconds"] <= 30


def test_ranks_have_time_to_save_before_their_pods_are_killed(trees: Trees) -> None:
    roles = one(trees["training"], "MPIJob")["spec"]["mpiReplicaSpecs"]
    arguments = roles["Launcher"]["template"]["spec"]["containers"][0]["args"]
    timeout_secs = int(arguments[arguments.index("odls_base_sigkill_timeout") + 1])
    # mpirun waits the timeout before SIGTERM and again before SIGKILL.
    for role in roles.values():
        assert 2 * timeout_secs < role["template"]["spec"]["terminationGracePeriodSeconds"]


def test_the_queue_is_the_only_difference_of_the_kueue_tree(trees: Trees) -> None:
    plain, queued = one(trees["training"], "MPIJob"), one(trees["training-kueue"], "MPIJob")
    assert queued["metadata"]["labels"].pop("kueue.x-k8s.io/queue-name") == "training"
    assert queued["spec"]["runPolicy"].pop("suspend") is True
    assert plain["spec"]["runPolicy"].pop("suspend") is False
    assert queued == plain


def test_the_workers_sshd_config_is_one_that_sshd_takes(trees: Trees) -> None:
    """Of every keyword, since sshd refuses to start over one that it does not know."""
    known = {
        "port", "pidfile", "hostkey", "authorizedkeysfile", "strictmodes", "usepam", "passwordauthentication",
        "kbdinteractiveauthentication", "allowusers", "x11forwarding", "allowtcpforwarding", "allowagentforwarding",
        "printmotd", "clientaliveinterval", "clientalivecountmax",
    }  # fmt: skip
    text = one(trees["training"], "ConfigMap")["data"]["sshd_config"]
    settings = dict(line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#"))
    assert {name.lower() for name in settings} == known
    worker = one(trees["training"], "MPIJob")["spec"]["mpiReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    assert [port["containerPort"] for port in worker["ports"]] == [int(settings["Port"])]
    mount_path = one(trees["training"], "MPIJob")["spec"]["sshAuthMountPath"]
    assert settings["HostKey"].startswith(f"{mount_path}/")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "slotsPerWorkers"), 8),
        (("spec", "mpiImplementation"), "OpenMPI4"),
        (("spec", "mpiReplicaSpecs", "Launcher", "replicas"), 2),
        (("spec", "mpiReplicaSpecs", "Worker", "replicas"), 0),
        (("spec", "mpiReplicaSpecs", "Worker", "restartPolicy"), "Always"),
        (("spec", "mpiReplicaSpecs", "Workers"), {}),
        (("spec", "runPolicy", "cleanPodPolicy"), "Never"),
        (("spec", "mpiReplicaSpecs", "Worker", "template", "spec", "volums"), []),
        (("spec", "mpiReplicaSpecs", "Worker", "template", "metadata", "lables"), {}),
    ],
)
def test_the_schema_of_mpijob_refuses(trees: Trees, path: tuple[str, ...], value: Any) -> None:
    job = one(trees["training"], "MPIJob")
    place = job
    for key in path[:-1]:
        place = place[key]
    missing = object()
    before = place.get(path[-1], missing)
    place[path[-1]] = value
    try:
        with pytest.raises(jsonschema.ValidationError):
            validate(job)
    finally:
        del place[path[-1]]
        if before is not missing:
            place[path[-1]] = before
    validate(job)


def test_the_yaml_is_package_data_under_the_names_that_the_code_uses() -> None:
    files = {entry.name for entry in (importlib.resources.files("k8s") / "serving").iterdir()}
    assert {"kustomization.yaml", "models.config", "deployment.yaml"} <= files


def test_kubectl_is_the_real_one(kubectl: str) -> None:
    told = subprocess.run([kubectl, "version", "--client"], capture_output=True, text=True, check=True).stdout
    assert "Kustomize Version" in told
