"""The wheel, installed into a new environment without the checkout, runs from prepare to serve and manifests."""

import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
IMAGE = REPOSITORY / "tests" / "compatibility" / "made_by_0_1_0" / "seven.png"
# A small training: a head on frozen features of small images, with weights that come with the dependencies.
LAUNCH = ["--recipe=frozen", "--device=cpu", "--set=model.image_size_px=32", "--set=train.epochs=2"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A virtual environment with the wheel alone installed in it.

    To spare a download of 1 GB, a .pth file puts the packages of this environment behind those of the new one. It adds
    the folder and does not read the .pth files in it, so the checkout, installed there as editable, is not found.
    """
    built, place = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("environment")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(built)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True, timeout=600)
    (wheel,) = built.glob("trainer-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True, timeout=600)
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps"]
    subprocess.run([*install, "--python", place / "bin" / "python", wheel], check=True, timeout=600)
    (packages_of(place) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place


def packages_of(environment: pathlib.Path) -> pathlib.Path:
    (packages,) = environment.glob("lib/python3.*/site-packages")
    return packages


def variables() -> dict[str, str]:
    """The variables of this process, without those by which Python would find the checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def run(environment: pathlib.Path, place: pathlib.Path, *arguments: str | pathlib.Path) -> str:
    command = [environment / "bin" / "trainer", *arguments]
    ended = subprocess.run(command, cwd=place, env=variables(), capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_every_file_that_is_no_module_is_in_the_wheel(environment: pathlib.Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "trainer", "export", "serving", "k8s", "recipes"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert [name for name in listed if not (packages_of(environment) / name).is_file()] == []


def test_the_checkout_is_out_of_reach(environment: pathlib.Path, tmp_path: pathlib.Path) -> None:
    program = "import json, sys, trainer, export, serving, k8s; print(json.dumps([trainer.__file__, sys.path]))"
    python = environment / "bin" / "python"
    told = subprocess.run(
        [python, "-c", program], cwd=tmp_path, env=variables(), capture_output=True, check=True
    ).stdout
    file, paths = json.loads(told)
    assert pathlib.Path(file).is_relative_to(environment)
    assert not any(pathlib.Path(path) == REPOSITORY for path in paths if path)


@pytest.mark.slow
def test_it_runs_from_prepare_to_serve_and_manifests(environment: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run(environment, tmp_path, "prepare", "digits", "--out=dataset", "--per-class=30", "--val=0.2", "--test=0.2")
    run(environment, tmp_path, "launch", "--data=dataset", "--run-dir=run", *LAUNCH)
    run(environment, tmp_path, "evaluate", "run", "--split=test", "--device=cpu")
    run(
        environment,
        tmp_path,
        "export",
        "run",
        "--out=model",
        "--name=digits",
        "--formats=saved_model",
        "--no-calibrate",
    )
    run(environment, tmp_path, "manifests", "model", "--out=manifests")
    assert (tmp_path / "manifests" / "kustomization.yaml").is_file()
    with subprocess.Popen(
        [environment / "bin" / "trainer", "serve", "model", "--port=0", "--grpc-port=0"],
        cwd=tmp_path,
        env={**variables(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            addresses = (re.search(r"http://[\w.]+:\d+", line) for line in server.stdout)
            address = next((found[0] for found in addresses if found), None)
            assert address is not None, "the server ended"
            (answer,) = json.loads(run(environment, tmp_path, "predict", address, IMAGE, "--json"))["predictions"]
            assert len(answer["classes"]) == 5
        finally:
            server.terminate()
            server.communicate(timeout=600)
    assert server.returncode == 0
