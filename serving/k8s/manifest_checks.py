"""Check Kubernetes manifests for what schemas cannot: names, ports and quantities that do not fit together.

The checks take all rendered objects that are applied together (the parsed output of `kubectl kustomize`).
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from serving.k8s.quantity import parse_quantity

Object = Mapping[str, Any]
Objects = Sequence[Object]

_KINDS_WITHOUT_PODS = {
    "ConfigMap",
    "Namespace",
    "NetworkPolicy",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "Secret",
    "Service",
    "ServiceAccount",
}
_TEMPLATE_KINDS = {"DaemonSet", "Deployment", "Job", "ReplicaSet", "StatefulSet"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that Kubernetes would refuse, or accept and not do."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


Check = Callable[[Objects], Iterator[Problem]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pods:
    """The pods of an object: a Pod itself, or the template of a workload."""

    where: str
    namespace: str | None
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def containers(self) -> list[Any]:
        return [*self.spec.get("initContainers", []), *self.spec.get("containers", [])]


def where(item: Object) -> str:
    """Return kind and name of an object, for messages."""
    return f"{item['kind']}/{item['metadata']['name']}"


def find_pods(objects: Objects) -> Iterator[Pods]:
    """Yield the pods of all objects; of an MPIJob, those of each replica type."""
    for item in objects:
        if item["kind"] == "Pod":
            yield _pods(item, "", item)
        elif item["kind"] in _TEMPLATE_KINDS:
            yield _pods(item, "", item["spec"]["template"])
        elif item["kind"] == "CronJob":
            yield _pods(item, "", item["spec"]["jobTemplate"]["spec"]["template"])
        elif item["kind"] == "MPIJob":
            for role, replica in item["spec"]["mpiReplicaSpecs"].items():
                yield _pods(item, f" {role}", replica["template"])


def check_kinds(objects: Objects) -> Iterator[Problem]:
    """Find kinds that the other checks do not know, which could hide anything from them."""
    for item in objects:
        if item["kind"] not in _KINDS_WITHOUT_PODS | _TEMPLATE_KINDS | {"Pod", "CronJob", "MPIJob"}:
            yield Problem(where(item), f"no check knows the kind {item['kind']}")


def check_selectors(objects: Objects) -> Iterator[Problem]:
    """Find selectors that match no pods: of workloads, Services, budgets, network policies and spreads."""
    all_pods = list(find_pods(objects))
    for item in objects:
        selector = item.get("spec", {}).get("selector", {})
        if item["kind"] in _TEMPLATE_KINDS and item["kind"] != "Job":
            wanted = selector.get("matchLabels", {})
            (own,) = find_pods([item])
            if not wanted or not _matches(wanted, own.labels):
                yield Problem(where(item), f"the selector {wanted} does not match its own pods, labelled {own.labels}")
        elif item["kind"] == "Service":
            yield from _check_selects_something(item, selector, all_pods)
        elif item["kind"] == "PodDisruptionBudget":
            yield from _check_selects_something(item, selector.get("matchLabels", {}), all_pods)
        elif item["kind"] == "NetworkPolicy":
            yield from _check_selects_something(item, item["spec"]["podSelector"].get("matchLabels", {}), all_pods)
    for pods in all_pods:
        for spread in pods.spec.get("topologySpreadConstraints", []):
            wanted = spread.get("labelSelector", {}).get("matchLabels", {})
            if not wanted or not _matches(wanted, pods.labels):
                yield Problem(pods.where, f"topologySpreadConstraints select {wanted}, not these pods: {pods.labels}")


def check_quantities(objects: Objects) -> Iterator[Problem]:
    """Find malformed quantities, requests above limits, and fractions of what is only whole."""
    for pods in find_pods(objects):
        for container in pods.containers:
            place = f"{pods.where} container {container['name']}"
            resources = container.get("resources", {})
            for kind in ("requests", "limits"):
                for name, value in resources.get(kind, {}).items():
                    yield from _check_quantity(place, f"resources.{kind}.{name}", name, value)
            yield from _check_requests_fit_limits(place, resources)
        for volume in pods.spec.get("volumes", []):
            size = (volume.get("emptyDir") or {}).get("sizeLimit")
            if size is not None:
                yield from _check_quantity(pods.where, f"volume {volume['name']} sizeLimit", "storage", size)
    for item in objects:
        if item["kind"] == "PersistentVolumeClaim":
            for name, value in item["spec"]["resources"]["requests"].items():
                yield from _check_quantity(where(item), f"requests.{name}", name, value)


def check_volumes(objects: Objects) -> Iterator[Problem]:
    """Find mounts of undeclared volumes, volumes that no container mounts, and sources that do not exist."""
    for pods in find_pods(objects):
        volumes = {volume["name"]: volume for volume in pods.spec.get("volumes", [])}
        mounted = set()
        for container in pods.containers:
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            for path in sorted({path for path in paths if paths.count(path) > 1}):
                yield Problem(pods.where, f"container {container['name']} mounts two volumes at {path}")
            for mount in container.get("volumeMounts", []):
                mounted.add(mount["name"])
                if mount["name"] not in volumes:
                    yield Problem(pods.where, f"container {container['name']} mounts undefined volume {mount['name']}")
        for name in sorted(set(volumes) - mounted):
            yield Problem(pods.where, f"volume {name} is mounted by no container")
        for volume in volumes.values():
            yield from _check_volume_source(pods, volume, objects)


def check_environment(objects: Objects) -> Iterator[Problem]:
    """Find environment variables from missing ConfigMaps and limits, and undefined $(NAME) in arguments."""
    for pods in find_pods(objects):
        limits = {c["name"]: c.get("resources", {}).get("limits", {}) for c in pods.containers}
        for container in pods.containers:
            words = " ".join([*container.get("command", []), *container.get("args", [])])
            defined = {variable["name"] for variable in container.get("env", [])}
            for name in sorted(set(re.findall(r"(?<!\$)\$\((\w+)\)", words)) - defined):
                yield Problem(pods.where, f"container {container['name']} uses $({name}), which its env lacks")
            for variable in container.get("env", []):
                source = variable.get("valueFrom", {})
                limit, key = source.get("resourceFieldRef"), source.get("configMapKeyRef")
                if limit:
                    given = limits.get(limit.get("containerName", container["name"]), {})
                    if limit["resource"].removeprefix("limits.") not in given:
                        yield Problem(pods.where, f"env {variable['name']} reads {limit['resource']}, which is not set")
                if key and key["key"] not in (find_config_map(objects, pods.namespace, key["name"]) or {}):
                    yield Problem(pods.where, f"env {variable['name']} reads undefined {key['name']}/{key['key']}")


def check_ports(objects: Objects) -> Iterator[Problem]:
    """Find ports of probes, Services and policies that the container does not have."""
    all_pods = list(find_pods(objects))
    for pods in all_pods:
        for container in pods.containers:
            for probe in PROBES:
                handler = container.get(probe, {})
                for kind in ("httpGet", "tcpSocket", "grpc"):
                    if kind in handler and handler[kind]["port"] not in _port_keys([container]):
                        yield Problem(
                            pods.where,
                            f"{probe} of container {container['name']} asks port {handler[kind]['port']}, "
                            f"but its ports are {_show_ports([container])}",
                        )
    for item in objects:
        if item["kind"] == "Service":
            ports = [port.get("targetPort", port["port"]) for port in item["spec"]["ports"]]
            yield from _check_ports_of_selected(item, item["spec"].get("selector", {}), ports, all_pods)
        elif item["kind"] == "NetworkPolicy":
            ports = [
                p["port"] for rule in item["spec"].get("ingress", []) for p in rule.get("ports", []) if "port" in p
            ]
            selector = item["spec"]["podSelector"].get("matchLabels", {})
            yield from _check_ports_of_selected(item, selector, ports, all_pods)


STRUCTURE_CHECKS: tuple[Check, ...] = (
    check_kinds,
    check_selectors,
    check_quantities,
    check_volumes,
    check_environment,
    check_ports,
)


def find_config_map(objects: Objects, namespace: str | None, name: str) -> Mapping[str, str] | None:
    """Return the files of a ConfigMap among `objects`, or None if it does not exist."""
    found = _find(objects, "ConfigMap", namespace, name)
    return None if found is None else {**found.get("data", {}), **found.get("binaryData", {})}


def _pods(item: Object, role: str, template: Mapping[str, Any]) -> Pods:
    return Pods(
        where=where(item) + role,
        namespace=item["metadata"].get("namespace"),
        labels=template.get("metadata", {}).get("labels", {}),
        spec=template["spec"],
    )


def _matches(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())


def _selected(item: Object, wanted: Mapping[str, str], all_pods: Sequence[Pods]) -> list[Pods]:
    namespace = item["metadata"].get("namespace")
    return [pods for pods in all_pods if pods.namespace == namespace and _matches(wanted, pods.labels)]


def _check_selects_something(item: Object, wanted: Mapping[str, str], all_pods: Sequence[Pods]) -> Iterator[Problem]:
    if not wanted or not _selected(item, wanted, all_pods):
        yield Problem(where(item), f"the selector {wanted} matches no pods: {[dict(p.labels) for p in all_pods]}")


def _check_ports_of_selected(
    item: Object, wanted: Mapping[str, str], ports: Sequence[str | int], all_pods: Sequence[Pods]
) -> Iterator[Problem]:
    for pods in _selected(item, wanted, all_pods):
        for port in ports:
            if port not in _port_keys(pods.containers):
                there = _show_ports(pods.containers)
                yield Problem(where(item), f"port {port} is not one of {pods.where}, which has {there}")


def _port_keys(containers: Sequence[Any]) -> set[str | int]:
    ports = [port for container in containers for port in container.get("ports", [])]
    return {port["containerPort"] for port in ports} | {port["name"] for port in ports if "name" in port}


def _show_ports(containers: Sequence[Any]) -> str:
    return ", ".join(sorted(map(str, _port_keys(containers)))) or "none"


def _check_quantity(place: str, field: str, resource: str, value: Any) -> Iterator[Problem]:
    try:
        amount = parse_quantity(value)
    except ValueError as e:
        yield Problem(place, f"{field}: {e}")
        return
    if amount < 0:
        yield Problem(place, f"{field} is {value}, which is negative")
    # "400m" of memory is 0.4 bytes: valid, but never intended. GPUs and the like are whole by definition.
    if resource != "cpu" and amount != amount.to_integral_value():
        yield Problem(place, f"{field} is {value}, but must be a whole number")


def _check_requests_fit_limits(place: str, resources: Mapping[str, Any]) -> Iterator[Problem]:
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for name in sorted(set(requests) & set(limits)):
        try:
            request, limit = parse_quantity(requests[name]), parse_quantity(limits[name])
        except ValueError:
            continue  # reported by _check_quantity
        if request > limit:
            yield Problem(place, f"requests {requests[name]} of {name}, above its limit {limits[name]}")
        if "/" in name and request != limit:
            yield Problem(place, f"request {requests[name]} and limit {limits[name]} of {name} must be equal")


def _check_volume_source(pods: Pods, volume: Mapping[str, Any], objects: Objects) -> Iterator[Problem]:
    if "configMap" in volume and not volume["configMap"].get("optional"):
        name = volume["configMap"]["name"]
        files = find_config_map(objects, pods.namespace, name)
        if files is None:
            yield Problem(pods.where, f"volume {volume['name']} is of undefined ConfigMap {name}")
            return
        for entry in volume["configMap"].get("items", []):
            if entry["key"] not in files:
                yield Problem(pods.where, f"volume {volume['name']} takes {entry['key']}, which {name} does not hold")
    for kind, field, key in (
        ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
        ("Secret", "secret", "secretName"),
    ):
        source = volume.get(field)
        if source and not source.get("optional") and not _find(objects, kind, pods.namespace, source[key]):
            yield Problem(pods.where, f"volume {volume['name']} is of undefined {kind} {source[key]}")


def _find(objects: Objects, kind: str, namespace: str | None, name: str) -> Object | None:
    for item in objects:
        metadata = item["metadata"]
        if item["kind"] == kind and metadata["name"] == name and metadata.get("namespace") == namespace:
            return item
    return None
