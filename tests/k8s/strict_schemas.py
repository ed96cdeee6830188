"""Strict validation of Kubernetes objects; a kind without a schema is an error, never a pass."""

import importlib.resources
import json
from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES_VERSION = "1.33"
_CUSTOM_SCHEMAS = {("kubeflow.org/v2beta1", "MPIJob"): "kubeflow.org-v2beta1-mpijob.json"}


def validate(item: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError, or kubernetes_validate.SchemaNotFoundError for a kind that has no schema."""
    file_name = _CUSTOM_SCHEMAS.get((item["apiVersion"], item["kind"]))
    if file_name is None:
        kubernetes_validate.validate(item, KUBERNETES_VERSION, strict=True)
        return
    schema = json.loads((importlib.resources.files("k8s") / "schemas" / file_name).read_text())
    jsonschema.validate(item, schema, cls=jsonschema.Draft202012Validator)
    for role, replica in item["spec"]["mpiReplicaSpecs"].items():
        metadata = {"name": role.lower(), **replica["template"].get("metadata", {})}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": replica["template"]["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)
