"""Check manifests against the Pod Security Standard "restricted".

https://kubernetes.io/docs/concepts/security/pod-security-standards/ (policy of Kubernetes 1.33), and one more rule: the
root file system is read-only, so that a compromised process cannot change the image.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from serving.k8s.manifest_checks import Objects, Pods, Problem, find_pods

_VOLUME_TYPES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SECCOMP_TYPES = {"RuntimeDefault", "Localhost"}
_SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}
_SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def check_pod_security(objects: Objects) -> Iterator[Problem]:
    """Find what a namespace that enforces "restricted" would refuse."""
    for pods in find_pods(objects):
        broken = [*_rules_of_pod(pods.spec)]
        for container in pods.containers:
            rules = _rules_of_container(container, pods.spec.get("securityContext", {}))
            broken += [f"container {container['name']} {rule}" for rule in rules]
        for rule in broken:
            yield Problem(pods.where, f"{rule} (Pod Security restricted)")
        yield from _writable_roots(pods)


def _rules_of_pod(spec: Mapping[str, Any]) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"sets {field}"
    for volume in spec.get("volumes", []):
        for kind in sorted(set(volume) - {"name"} - _VOLUME_TYPES):
            yield f"volume {volume['name']} is a {kind}"
    for sysctl in spec.get("securityContext", {}).get("sysctls", []):
        if sysctl["name"] not in _SAFE_SYSCTLS:
            yield f"sets the sysctl {sysctl['name']}"


def _rules_of_container(container: Mapping[str, Any], of_pod: Mapping[str, Any]) -> Iterator[str]:
    own = container.get("securityContext", {})
    both = {**of_pod, **own}
    if own.get("privileged"):
        yield "is privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "must set allowPrivilegeEscalation: false"
    if both.get("runAsNonRoot") is not True:
        yield "must set runAsNonRoot: true"
    if both.get("runAsUser") == 0:
        yield "runs as user 0"
    if both.get("seccompProfile", {}).get("type") not in _SECCOMP_TYPES:
        yield "must set seccompProfile.type to RuntimeDefault or Localhost"
    if both.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in _SECCOMP_TYPES:
        yield "unsets AppArmor"
    selinux = both.get("seLinuxOptions", {})
    if selinux.get("type", "") not in _SELINUX_TYPES or "user" in selinux or "role" in selinux:
        yield "sets SELinux options"
    if own.get("procMount", "Default") != "Default":
        yield "changes procMount"
    yield from _rules_of_capabilities(own.get("capabilities", {}))
    if any("hostPort" in port for port in container.get("ports", [])):
        yield "takes a hostPort"
    for handler in _handlers(container):
        if "host" in handler.get("httpGet", {}) or "host" in handler.get("tcpSocket", {}):
            yield "has a probe or hook that names a host"


def _rules_of_capabilities(capabilities: Mapping[str, Any]) -> Iterator[str]:
    if "ALL" not in capabilities.get("drop", []):
        yield "must drop ALL capabilities"
    added = set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}
    if added:
        yield f"adds the capabilities {', '.join(sorted(added))}"


def _handlers(container: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        yield container.get(name, {})
    yield from container.get("lifecycle", {}).values()


def _writable_roots(pods: Pods) -> Iterator[Problem]:
    for container in pods.containers:
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield Problem(pods.where, f"container {container['name']} must set readOnlyRootFilesystem: true")
