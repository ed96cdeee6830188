"""The wheel works where no checkout is: it holds recipes, templates and manifests, and runs from prepare to serve."""

import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import httpx
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
EXPORT = REPOSITORY / "tests" / "compatibility" / "made_by_0_1_0" / "export"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with the wheel unpacked, which is what its installation comes to."""
    built, site = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(built)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True, timeout=600)
    (wheel,) = built.glob("trainer-*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def command(site: pathlib.Path, *arguments: str | pathlib.Path) -> tuple[list[str], dict[str, str]]:
    """The command and its environment, in which the wheel comes before the checkout."""
    program = (
        f"import trainer; assert trainer.__file__.startswith({str(site)!r}); import trainer.cli.app as a; a.main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
    return [sys.executable, "-P", "-c", program, *map(str, arguments)], environment


def run(site: pathlib.Path, place: pathlib.Path, *arguments: str | pathlib.Path) -> str:
    words, environment = command(site, *arguments)
    ended = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_every_file_that_is_no_module_is_in_the_wheel(site: pathlib.Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "trainer", "export", "serving", "k8s", "recipes"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert [name for name in listed if not (site / name).is_file()] == []


def test_a_dataset_is_prepared_and_its_training_planned_by_a_recipe(site: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run(site, tmp_path, "prepare", "digits", "--out", "digits")
    planned = run(site, tmp_path, "launch", "--data=digits", "--recipe=frozen", "--device=cpu", "--dry-run", "--json")
    assert json.loads(planned)["schema_version"] == 1
    assert not (tmp_path / "runs").exists()


def test_an_export_gets_manifests_and_is_served(site: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run(site, tmp_path, "manifests", EXPORT, "--out", "manifests")
    assert (tmp_path / "manifests" / "kustomization.yaml").is_file()
    words, environment = command(site, "serve", EXPORT, "--port", "0")
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        assert server.stdout is not None
        addresses = (re.search(r"http://[\w.]+:\d+", line) for line in server.stdout)
        address = next((found[0] for found in addresses if found), None)
        assert address is not None, "the server ended"
        assert httpx.get(f"{address}/v1/models/digits").json()["model_version_status"][0]["state"] == "AVAILABLE"
        server.terminate()
        server.communicate(timeout=600)
