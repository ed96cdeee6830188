"""The lines that `trainer manifests` prints, run as they stand against a kubectl that has a folder for a volume."""

import os
import pathlib
import shutil
import subprocess

import pytest

from serving.k8s.manifests import ManifestSettings, write_manifests

# exec runs in a folder in the place of /models, cp does as kubectl does (into a folder that is there already), and is
# cut off after the first half of a file where CUT says so: with an error, or, as happens, without one.
KUBECTL = """#!/bin/sh
set -eu
[ "$1" = -n ] && shift 2
here() { printf '%s' "$1" | sed "s#/models/#$VOLUME/#g"; }
case $1 in
exec)
  shift
  [ "$1" = -i ] && shift
  shift 2
  command=
  for word; do command="$command $(here "$word")"; done
  $command
  ;;
cp)
  to=$(here "${3#*:}")
  if [ -d "$to" ]; then to=$to/$(basename "$2"); fi
  cp -r "$2" "$to"
  if [ "${CUT:-}" ]; then
    big=$(find "$to" -name weights | sort | tail -n 1)
    head -c 5 "$big" > "$big.half"
    mv "$big.half" "$big"
    [ "$CUT" != error ]
  fi
  ;;
*) ;;
esac
"""


class Cluster:
    """Runs lines of shell with the kubectl above."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.volume = directory / "models"
        self.volume.mkdir()
        program = directory / "bin/kubectl"
        program.parent.mkdir()
        program.write_text(KUBECTL)
        program.chmod(0o755)
        self._path = f"{program.parent}:{os.environ['PATH']}"

    def run(self, line: str, cut: str = "") -> subprocess.CompletedProcess[str]:
        environment = {"PATH": self._path, "VOLUME": str(self.volume), "CUT": cut}
        return subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, check=False)

    def contents(self) -> dict[str, bytes]:
        files = (path for path in self.volume.rglob("*") if path.is_file())
        return {path.relative_to(self.volume).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.fixture
def base_path(export_dir: pathlib.Path) -> pathlib.Path:
    """Versions 3 and 12 with something in them, and names that a shell would take apart."""
    base_path = export_dir / "saved_model/Flower_Model.v2"
    for version in ("3", "12"):
        (base_path / version / "variables").mkdir()
        (base_path / version / "variables" / "weights").write_text(f"weights of {version}")
        (base_path / version / "it's an $asset.txt").write_text("asset")
    return base_path


def lines_of(export_dir: pathlib.Path, out: pathlib.Path) -> list[str]:
    return write_manifests(export_dir, out, ManifestSettings(namespace="flowers")).commands


def expected(base_path: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in base_path.rglob("*") if path.is_file())
    return {f"Flower_Model.v2/{path.relative_to(base_path).as_posix()}": path.read_bytes() for path in files}


def test_the_lines_publish_every_version_whole_and_again_the_same(
    cluster: Cluster, export_dir: pathlib.Path, base_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    lines = lines_of(export_dir, tmp_path / "out")
    for _ in range(2):
        for line in lines:
            done = cluster.run(line)
            assert done.returncode == 0, (line, done.stderr)
        assert cluster.contents() == expected(base_path)


@pytest.mark.parametrize("cut", ["error", "silent"])
@pytest.mark.parametrize("repeated_from", ["kubectl cp", "the start"])
def test_a_cut_copy_is_not_published_and_the_lines_repeated_publish_it_whole(
    cut: str,
    repeated_from: str,
    cluster: Cluster,
    export_dir: pathlib.Path,
    base_path: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    lines = lines_of(export_dir, tmp_path / "out")
    (copy,) = (number for number, line in enumerate(lines) if " cp " in line)
    assert cluster.run(lines[copy], cut=cut).returncode == (1 if cut == "error" else 0)
    refused = cluster.run(lines[copy + 1])
    assert refused.returncode == 1 and "has not arrived whole" in refused.stderr
    assert not any(name.startswith("Flower_Model.v2/12/") for name in cluster.contents()), "cut in the first version"
    for line in lines[copy if repeated_from == "kubectl cp" else 0 :]:
        assert cluster.run(line).returncode == 0, line
    assert cluster.contents() == expected(base_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_script_that_was_cut_off_on_its_way_does_nothing(
    share: float, cluster: Cluster, export_dir: pathlib.Path, base_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    lines = lines_of(export_dir, tmp_path / "out")
    shutil.copytree(base_path, cluster.volume / ".incoming-Flower_Model.v2")
    script = tmp_path / "out/loader/publish.sh"
    script.write_text(script.read_text()[: int(share * len(script.read_text()))])
    (line,) = (line for line in lines if "publish.sh" in line)
    assert (cluster.run(line).returncode == 0) == (share == 0)
    assert not (cluster.volume / "Flower_Model.v2").exists()


def test_another_export_of_a_version_that_is_there_is_refused(
    cluster: Cluster, export_dir: pathlib.Path, base_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for line in lines_of(export_dir, tmp_path / "first"):
        assert cluster.run(line).returncode == 0
    before = cluster.contents()
    (base_path / "3/variables/weights").write_text("other weights")
    results = [cluster.run(line) for line in lines_of(export_dir, tmp_path / "second")]
    (refused,) = (done for done in results if done.returncode)
    assert "is another version 3 than this one" in refused.stderr and "higher --version" in refused.stderr
    published = {name: content for name, content in cluster.contents().items() if not name.startswith(".")}
    assert published == before
