"""Generate the shell commands that load an export into a cluster. All of them are idempotent.

The version is copied to a hidden directory on the volume, verified against checksums there, and renamed. A server
that watches the volume never sees half a version, whatever was interrupted and repeated.
"""

import pathlib
import shlex
from collections.abc import Iterable

from export.files.checksums import sha256_of

MODELS_DIR = "/models"
# Next to the kustomization of the loader's pod.
SCRIPT_FILE = pathlib.PurePosixPath("loader", "publish.sh")

# The shell parses a group in braces before running any of it, so that a truncated script does nothing but fail.
_SCRIPT = """{{
# Usage: publish.sh MODEL INCOMING, the directories of the published versions and of the copies. Written by `trainer
# manifests`; runs in the pod that mounts the volume, and may be repeated.
set -eu
model=$1
incoming=$2

# is_whole DIRECTORY NUM_FILES: the checksums are on standard input.
is_whole() {{
  [ -d "$1" ] && [ "$(find "$1" -type f | wc -l)" -eq "$2" ] && (cd "$1" && sha256sum -c - >/dev/null 2>&1)
}}

# publish VERSION NUM_FILES CHECKSUMS
publish() {{
  if [ -e "$model/$1" ]; then
    if ! printf '%s\\n' "$3" | is_whole "$model/$1" "$2"; then
      echo "$model/$1 is another version $1 than this one, which is left where it is; export again with a higher" \\
        "--version, and write the manifests for that" >&2
      exit 1
    fi
    echo "version $1 is published"
    return
  fi
  if ! printf '%s\\n' "$3" | is_whole "$incoming/$1" "$2"; then
    echo "version $1 has not arrived whole, and is not published; repeat the line with kubectl cp, then this one" >&2
    exit 1
  fi
  mkdir -p "$model"
  sync
  mv -T "$incoming/$1" "$model/$1"
  echo "version $1 is published"
}}

{calls}
rm -rf "$incoming"
}}
"""


def publish_script(versions: Iterable[pathlib.Path]) -> str:
    """Return a `sh` script that verifies the copies of the directories `versions` and renames them."""
    calls = []
    for directory in versions:
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        sums = "\n".join(f"{sha256_of(file)}  {file.relative_to(directory).as_posix()}" for file in files)
        calls.append(f"publish {directory.name} {len(files)} {shlex.quote(sums)}")
    return _SCRIPT.format(calls="\n".join(calls))


def load_commands(
    out: pathlib.Path, base_path: pathlib.Path, *, model_name: str, prefix: str, namespace: str | None
) -> list[str]:
    """Return shell commands in order; `out` is the kustomize tree, with the script at `SCRIPT_FILE`."""
    kubectl = "kubectl" if namespace is None else f"kubectl -n {namespace}"
    pod = f"{prefix}model-loader"
    model, incoming = f"{MODELS_DIR}/{model_name}", f"{MODELS_DIR}/.incoming-{model_name}"
    # kubectl copies a directory into an existing one, so remains of an interrupted copy are removed first. A finished
    # loader pod would never be ready again.
    return [
        f"kubectl apply -k {shlex.quote(str(out))}",
        f"{kubectl} delete pod {pod} --ignore-not-found",
        f"kubectl apply -k {shlex.quote(str(out / 'loader'))}",
        f"{kubectl} wait --for=condition=Ready --timeout=5m pod/{pod}",
        f"{kubectl} exec {pod} -- rm -rf {incoming} && {kubectl} cp {shlex.quote(str(base_path))} {pod}:{incoming}",
        f"{kubectl} exec -i {pod} -- sh -s {model} {incoming} < {shlex.quote(str(out / SCRIPT_FILE))}",
        f"{kubectl} delete pod {pod} --ignore-not-found",
        f"{kubectl} rollout status deployment/{prefix}model-server",
    ]
