"""Write a kustomize tree that serves one export with TensorFlow Serving, from the YAML under `k8s/`.

    DIR/
      kustomization.yaml   the model's overlay of base/serving   kubectl apply -k DIR
      models.config        name, path and versions of the model
      loader/              a pod that fills the volume           kubectl apply -k DIR/loader
        publish.sh         runs in that pod: verifies the copy and renames it
      base/                copies of k8s/serving and k8s/serving-loader

No object is written here: names, versions and numbers are patches of the base, which can be read, compared and
rendered by itself.
"""

import dataclasses
import importlib.resources
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any, Literal

import yaml

from export.files.signature import Signature
from serving.k8s.load_commands import MODELS_DIR, SCRIPT_FILE, load_commands, publish_script
from serving.k8s.workload_checks import check_manifests
from serving.models.base_path import base_path_of, find_versions
from trainer.errors import TrainerError, UsageError
from trainer.system import atomic
from trainer.system.names import check_model_name, check_namespace, object_prefix

# The first line of our kustomizations; a directory without it is not ours and is not replaced.
MARKER = "# Written by `trainer manifests`; it replaces the whole directory when it is run again."
VersionPolicy = Literal["specific", "latest", "all"]

_BASES = ("serving", "serving-loader")
_SERVER_IMAGE = "tensorflow/serving"
# https://pkg.go.dev/github.com/distribution/reference#pkg-overview, without the limits on length.
_REPOSITORY = re.compile(r"[a-zA-Z0-9.-]+(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PLAIN_WORD = re.compile(r"[A-Za-z./][A-Za-z./-]+")
_RENDER_LIMIT_SECS = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManifestSettings:
    """Settings that override the export's name and the base's numbers; None keeps them.

    version_policy: "specific" pins the versions of the export, "latest" follows the newest on the volume, "all" serves
    every version there.
    """

    model_name: str | None = None
    namespace: str | None = None
    replicas: int = 2
    image: str | None = None
    version_policy: VersionPolicy = "specific"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenManifests:
    """The result of `write_manifests`.

    Attributes:
        commands: shell commands that load the model into a cluster, in order.
        was_checked: whether kubectl was available to render the tree, so that it was checked.
    """

    directory: pathlib.Path
    model_name: str
    versions: list[int]
    service: str
    namespace: str | None
    commands: list[str]
    was_checked: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return {**dataclasses.asdict(self), "directory": str(self.directory)}


def write_manifests(export_dir: pathlib.Path, out: pathlib.Path, settings: ManifestSettings) -> WrittenManifests:
    """Write the tree for the SavedModel of an export to `out`, whole or not at all.

    Raises:
        ArtifactError: `export_dir` is not an export.
        UsageError: Kubernetes would refuse a setting, or `out` holds something else.
        TrainerError: the result does not pass the checks, which is a bug.
    """
    signature = Signature.load(export_dir)
    base_path = base_path_of(export_dir, signature)
    directories = find_versions(base_path)
    versions = list(directories)
    model_name = settings.model_name or signature.model_name
    _check_settings(model_name, settings)
    _check_replaceable(out)
    prefix = object_prefix(model_name)
    with atomic.new_directory(out) as directory:
        _write_tree(directory, model_name=model_name, prefix=prefix, versions=versions, settings=settings)
        (directory / SCRIPT_FILE).write_text(publish_script(directories.values()), encoding="utf-8")
        kubectl = find_kubectl()
        if kubectl is not None:
            _require_sound([*render(directory, kubectl), *render(directory / "loader", kubectl)])
    return WrittenManifests(
        directory=out,
        model_name=model_name,
        versions=versions,
        service=f"{prefix}model-server",
        namespace=settings.namespace,
        commands=load_commands(out, base_path, model_name=model_name, prefix=prefix, namespace=settings.namespace),
        was_checked=kubectl is not None,
    )


def models_config(model_name: str, versions: list[int], policy: VersionPolicy) -> str:
    """Return TensorFlow Serving's ModelServerConfig for one model, as protocol buffer text."""
    chosen = {
        "specific": f"specific {{ {' '.join(f'versions: {version}' for version in versions)} }}",
        "latest": "latest { num_versions: 1 }",
        "all": "all {}",
    }[policy]
    return f"""# tensorflow.serving.ModelServerConfig, as text.
model_config_list {{
  config {{
    name: "{model_name}"
    base_path: "{MODELS_DIR}/{model_name}"
    model_platform: "tensorflow"
    model_version_policy {{ {chosen} }}
  }}
}}
"""


def find_kubectl() -> str | None:
    """Return the path of kubectl on the PATH or beside this Python (from a package), or None."""
    return shutil.which("kubectl") or shutil.which("kubectl", path=str(pathlib.Path(sys.executable).parent))


def render(directory: pathlib.Path, kubectl: str) -> list[dict[str, Any]]:
    """Return the objects of a kustomize tree, rendered by kubectl without a cluster.

    Raises TrainerError with what kubectl said.
    """
    rendered = subprocess.run(  # noqa: S603
        [kubectl, "kustomize", str(directory)],
        capture_output=True,
        text=True,
        timeout=_RENDER_LIMIT_SECS,
        check=False,
        encoding="utf-8",
        errors="replace",
    )
    if rendered.returncode != 0:
        raise TrainerError(f"{directory} cannot be rendered: {' '.join(rendered.stderr.split())}")
    return [item for item in yaml.safe_load_all(rendered.stdout) if item is not None]


def _check_settings(model_name: str, settings: ManifestSettings) -> None:
    check_model_name(model_name)
    if settings.namespace is not None:
        check_namespace(settings.namespace)


def _check_replaceable(out: pathlib.Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    kustomization = out / "kustomization.yaml"
    if not (kustomization.is_file() and kustomization.read_text(encoding="utf-8").startswith(MARKER)):
        raise UsageError(
            f"{out} holds something that `trainer manifests` did not write, and would be replaced; "
            "give --out a new directory"
        )


def _write_tree(
    directory: pathlib.Path, *, model_name: str, prefix: str, versions: list[int], settings: ManifestSettings
) -> None:
    for base in _BASES:
        _copy_base(base, directory / "base" / base)
    (directory / "models.config").write_text(
        models_config(model_name, versions, settings.version_policy), encoding="utf-8"
    )
    server = _server_kustomization(model_name, prefix, settings)
    (directory / "kustomization.yaml").write_text(_to_yaml(server), encoding="utf-8")
    (directory / "loader").mkdir()
    (directory / "loader" / "kustomization.yaml").write_text(
        _to_yaml(_loader_kustomization(prefix, settings)), encoding="utf-8"
    )


def _copy_base(name: str, target: pathlib.Path) -> None:
    target.mkdir(parents=True)
    for entry in (importlib.resources.files("k8s") / name).iterdir():
        (target / entry.name).write_bytes(entry.read_bytes())


def _server_kustomization(model_name: str, prefix: str, settings: ManifestSettings) -> dict[str, Any]:
    container = "/spec/template/spec/containers/0"
    path = f"/v1/models/{model_name}/metadata"
    patch = [
        {"op": "replace", "path": f"{container}/{probe}/httpGet/path", "value": path}
        for probe in ("startupProbe", "readinessProbe")
    ]
    return {
        **_common("base/serving", prefix, settings),
        "replicas": [{"name": "model-server", "count": settings.replicas}],
        "configMapGenerator": [{"name": "model-server-config", "behavior": "merge", "files": ["models.config"]}],
        "patches": [{"target": {"kind": "Deployment", "name": "model-server"}, "patch": _patch_text(patch)}],
    }


def _loader_kustomization(prefix: str, settings: ManifestSettings) -> dict[str, Any]:
    # The claim is not an object of this tree, so that deleting the loader does not delete the models; kustomize
    # therefore does not prefix its name.
    claim = "/spec/volumes/0/persistentVolumeClaim/claimName"
    patch = [{"op": "replace", "path": claim, "value": f"{prefix}models"}]
    return {
        **_common("../base/serving-loader", prefix, settings),
        "patches": [{"target": {"kind": "Pod", "name": "model-loader"}, "patch": _patch_text(patch)}],
    }


def _common(base: str, prefix: str, settings: ManifestSettings) -> dict[str, Any]:
    common: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [base],
        "namePrefix": prefix,
        "labels": [
            {"pairs": {"app.kubernetes.io/instance": prefix.rstrip("-")}, "includeSelectors": True},
            {"pairs": {"app.kubernetes.io/managed-by": "trainer"}},
        ],
    }
    if settings.namespace is not None:
        common["namespace"] = settings.namespace
    if settings.image is not None:
        common["images"] = [{"name": _SERVER_IMAGE, **parse_image(settings.image)}]
    return common


def parse_image(image: str) -> dict[str, str]:
    """Parse an image into kustomize's `images:` fields newName, newTag and digest, if given.

    Raises UsageError.
    """
    rest, at, digest = image.partition("@")
    head, _, tail = rest.rpartition("/")
    name, colon, tag = tail.partition(":")
    repository = f"{head}/{name}" if head else name
    if not (
        _REPOSITORY.fullmatch(repository)
        and (not colon or _TAG.fullmatch(tag))
        and (not at or _DIGEST.fullmatch(digest))
    ):
        raise UsageError(f"--image {image!r} is not of the form repository[:tag][@sha256:64 hex digits]")
    parsed = {"newName": repository}
    if colon:
        parsed["newTag"] = tag
    if at:
        parsed["digest"] = digest
    return parsed


def _require_sound(objects: list[dict[str, Any]]) -> None:
    problems = check_manifests(objects)
    if problems:
        raise TrainerError("the manifests do not pass their checks: " + "; ".join(map(str, problems)))


def _patch_text(operations: list[dict[str, str]]) -> str:
    return yaml.dump(operations, Dumper=_Dumper, sort_keys=False)


def _to_yaml(kustomization: dict[str, Any]) -> str:
    return f"{MARKER}\n" + yaml.dump(kustomization, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Quotes everything but plain words: PyYAML and kubectl disagree on "n", "1e3" and "0o7"."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None if _PLAIN_WORD.fullmatch(text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
