"""`trainer manifests`: the tree that it writes for an export, rendered, validated, checked and parsed."""

import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest
from google.protobuf import text_format
from strict_schemas import validate

import serving.k8s.manifests
from serving.k8s.manifests import ManifestSettings, models_config, parse_image, render, write_manifests
from serving.k8s.workload_checks import check_manifests
from trainer.errors import ArtifactError, TrainerError, UsageError

# Of Flower_Model.v2, with the hash that every changed name gets.
PREFIX = "flower-model-v2-364c59b9"
DIGEST = "sha256:" + "0123456789abcdef" * 4


def both_trees(out: pathlib.Path, kubectl: str) -> list[dict[str, Any]]:
    return [*render(out, kubectl), *render(out / "loader", kubectl)]


def named(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (item for item in objects if item["kind"] == kind)
    return found


def parse_config(text: str) -> Any:
    from tensorflow_serving.config import model_server_config_pb2

    (model,) = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
    return model


def test_the_tree_is_for_this_export(export_dir: pathlib.Path, tmp_path: pathlib.Path, kubectl: str) -> None:
    out = tmp_path / "out"
    written = write_manifests(export_dir, out, ManifestSettings(replicas=3, namespace="flowers"))
    assert written.was_checked
    objects = both_trees(out, kubectl)
    for item in objects:
        validate(item)
    assert check_manifests(objects) == []

    assert {item["metadata"]["namespace"] for item in objects} == {"flowers"}
    assert all(item["metadata"]["name"].startswith(f"{PREFIX}-") for item in objects)
    assert named(objects, "Service")["metadata"]["name"] == written.service == f"{PREFIX}-model-server"
    deployment = named(objects, "Deployment")
    assert deployment["spec"]["replicas"] == 3
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "tensorflow/serving:2.20.0"
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] == "/v1/models/Flower_Model.v2/metadata"
    model = parse_config(named(objects, "ConfigMap")["data"]["models.config"])
    assert (model.name, model.base_path) == ("Flower_Model.v2", "/models/Flower_Model.v2")
    assert list(model.model_version_policy.specific.versions) == [3, 12]
    # Files of the base that were not replaced are still there.
    assert set(named(objects, "ConfigMap")["data"]) == {"models.config", "batching.config", "monitoring.config"}


def test_two_models_in_a_namespace_do_not_select_each_others_pods(
    export_dir: pathlib.Path, tmp_path: pathlib.Path, kubectl: str
) -> None:
    objects = []
    for name in ("a", "b"):
        write_manifests(export_dir, tmp_path / name, ManifestSettings(model_name=name))
        objects += both_trees(tmp_path / name, kubectl)
    assert check_manifests(objects) == []
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(set(names)) == len(names)
    selectors = [
        item["spec"]["selector"]["app.kubernetes.io/instance"] for item in objects if item["kind"] == "Service"
    ]
    assert selectors == ["a", "b"]


def test_an_image_with_tag_and_digest_replaces_the_bases(
    export_dir: pathlib.Path, tmp_path: pathlib.Path, kubectl: str
) -> None:
    image = f"mirror.example.com:5000/tf/serving:2.19.1@{DIGEST}"
    write_manifests(export_dir, tmp_path / "out", ManifestSettings(image=image))
    objects = both_trees(tmp_path / "out", kubectl)
    (server,) = named(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    (loader,) = named(objects, "Pod")["spec"]["containers"]
    assert server["image"] == loader["image"] == image


@pytest.mark.parametrize("word", ["n", "1e3", "0x1f", "null", "on", "12"])
def test_names_that_yaml_takes_for_something_else_stay_names(
    export_dir: pathlib.Path, tmp_path: pathlib.Path, kubectl: str, word: str
) -> None:
    settings = ManifestSettings(model_name=word, namespace=word, image=f"serving:{word}")
    write_manifests(export_dir, tmp_path / "out", settings)
    objects = both_trees(tmp_path / "out", kubectl)
    assert {item["metadata"]["namespace"] for item in objects} == {word}
    (server,) = named(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert server["image"] == f"serving:{word}"
    assert server["readinessProbe"]["httpGet"]["path"] == f"/v1/models/{word}/metadata"


@pytest.mark.parametrize(
    ("image", "parsed"),
    [
        ("tensorflow/serving", {"newName": "tensorflow/serving"}),
        ("serving:2.20.0", {"newName": "serving", "newTag": "2.20.0"}),
        ("localhost:5000/serving", {"newName": "localhost:5000/serving"}),
        (f"a.b/c@{DIGEST}", {"newName": "a.b/c", "digest": DIGEST}),
    ],
)
def test_images_are_parsed(image: str, parsed: dict[str, str]) -> None:
    assert parse_image(image) == parsed


@pytest.mark.parametrize("image", ["", "a b", "a:", "a@", "a@sha256:12", "a/:x", "A/../b", "http://a/b"])
def test_what_is_no_image_is_wrong_usage(image: str) -> None:
    with pytest.raises(UsageError, match="is not of the form repository"):
        parse_image(image)


@pytest.mark.parametrize(
    ("policy", "field", "expected"),
    [("latest", "latest", "num_versions: 1"), ("all", "all", ""), ("specific", "specific", "versions: 1 versions: 7")],
)
def test_version_policies_are_tensorflow_servings(policy: Any, field: str, expected: str) -> None:
    chosen = parse_config(models_config("m", [1, 7], policy)).model_version_policy
    assert chosen.WhichOneof("policy_choice") == field
    assert str(getattr(chosen, field)).split() == expected.split()


def test_the_same_command_again_replaces_its_own_tree(export_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    write_manifests(export_dir, out, ManifestSettings())
    (out / "stray.yaml").write_text("kind: Stray\n")
    write_manifests(export_dir, out, ManifestSettings(replicas=5))
    assert not (out / "stray.yaml").exists()
    assert "count: 5" in (out / "kustomization.yaml").read_text()


def test_a_directory_of_somebody_else_is_left_alone(export_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "kustomization.yaml").write_text("resources: []\n")
    with pytest.raises(UsageError, match="would be replaced; give --out a new directory"):
        write_manifests(export_dir, out, ManifestSettings())
    assert [path.name for path in out.iterdir()] == ["kustomization.yaml"]


def test_a_tree_that_fails_its_checks_is_not_published(
    export_dir: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config_of_another_model(*_: Any) -> str:
        return models_config("another", [1], "latest")

    monkeypatch.setattr(serving.k8s.manifests, "models_config", config_of_another_model)
    with pytest.raises(TrainerError, match=r"startupProbe asks .*, but its models.config serves another"):
        write_manifests(export_dir, tmp_path / "out", ManifestSettings())
    assert not (tmp_path / "out").exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".tmp-")] == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (ManifestSettings(model_name="a/b"), "the model name 'a/b' is not 1 to 128 letters"),
        (ManifestSettings(model_name='a"b'), "is not 1 to 128 letters"),
        (ManifestSettings(namespace="Upper"), "'Upper' is no name of a namespace"),
        (ManifestSettings(image="a b"), "--image 'a b' is not of the form"),
    ],
)
def test_settings_that_kubernetes_would_refuse_are_wrong_usage(
    export_dir: pathlib.Path, tmp_path: pathlib.Path, settings: ManifestSettings, told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        write_manifests(export_dir, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_what_is_no_export_is_an_artifact_error(export_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArtifactError, match="is not an export"):
        write_manifests(tmp_path / "absent", tmp_path / "out", ManifestSettings())
    shutil.rmtree(export_dir / "saved_model")
    with pytest.raises(ArtifactError, match="holds no version of a SavedModel"):
        write_manifests(export_dir, tmp_path / "out", ManifestSettings())


def run_command(*arguments: str | pathlib.Path) -> str:
    program = "import typer; from trainer.cli.serve import manifests; a = typer.Typer(); a.command()(manifests); a()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_kubectl_the_tree_is_written_and_said_to_be_unchecked(
    export_dir: pathlib.Path, tmp_path: pathlib.Path, kubectl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.k8s.manifests, "find_kubectl", lambda: None)
    assert not write_manifests(export_dir, tmp_path / "out", ManifestSettings()).was_checked
    assert check_manifests(both_trees(tmp_path / "out", kubectl)) == []


def test_the_command_tells_how_to_go_on_and_does_not_need_tensorflow(
    export_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    answer = json.loads(run_command(export_dir, "--out", tmp_path / "out", "--namespace", "n", "--json"))
    assert answer["was_checked"] is True
    assert answer["versions"] == [3, 12]
    commands = answer["commands"]
    assert commands[0] == f"kubectl apply -k {tmp_path}/out"
    assert f"kubectl -n n cp '{export_dir}/saved_model/Flower_Model.v2' " in commands[4]
    assert all(subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0 for command in commands)

    program = "import sys, serving.k8s.manifests; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
