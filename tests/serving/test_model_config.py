"""`models.config` is read as TensorFlow Serving reads it, and refused in one sentence where it would refuse it."""

import json
import pathlib
import shutil

import pytest
from fake_versions import FakeModels, write_version

from serving.models.config_file import ConfigFile
from serving.models.manager import VersionManager
from serving.models.model import Models, Target
from serving.models.model_config import ModelConfig, read_model_config
from serving.models.version_policy import ALL, LATEST, VersionPolicy
from trainer.cli.served_models import choose_models
from trainer.errors import ArtifactError, UsageError


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    for name in ("cats", "dogs"):
        for version in (3, 4):
            write_version(tmp_path / name, version)
    return tmp_path


def write_config(root: pathlib.Path, *models: str) -> pathlib.Path:
    path = root / "models.config"
    path.write_text("model_config_list {" + "".join(f"config {{ {model} }}\n" for model in models) + "}")
    return path


def model(root: pathlib.Path, name: str, rest: str = "", *, platform: str = 'model_platform: "tensorflow"') -> str:
    return f'name: "{name}" base_path: "{root / name}" {platform} {rest}'


def test_every_field_that_decides_what_is_served_is_read(root: pathlib.Path) -> None:
    labels = 'version_labels { key: "stable" value: 3 } version_labels { key: "canary" value: 4 }'
    path = write_config(
        root,
        model(root, "cats", f"model_version_policy {{ specific {{ versions: 3 versions: 4 }} }} {labels}"),
        model(root, "dogs", "model_version_policy { latest { num_versions: 2 } }"),
        f'name: "all" base_path: "{root / "dogs"}" model_type: TENSORFLOW model_version_policy {{ all {{}} }}',
        f'name: "plain" base_path: "{root / "dogs"}" model_platform: "tensorflow"',
    )
    both = VersionPolicy("specific", versions=frozenset({3, 4}))
    assert read_model_config(path) == [
        ModelConfig("cats", root / "cats", both, {"stable": 3, "canary": 4}),
        ModelConfig("dogs", root / "dogs", VersionPolicy("latest", num_versions=2), {}),
        ModelConfig("all", root / "dogs", ALL, {}),
        ModelConfig("plain", root / "dogs", LATEST, {}),
    ]


def test_several_models_and_labels_are_served_from_it(root: pathlib.Path) -> None:
    rest = 'model_version_policy { all {} } version_labels { key: "stable" value: 3 }'
    path = write_config(root, model(root, "cats", rest), model(root, "dogs"))
    manager = VersionManager(Models(), serving=FakeModels().serving, tell=lambda _: None)
    manager.start(read_model_config(path), poll_wait_secs=0)
    assert manager.models.names == ["cats", "dogs"]
    assert manager.models.available_versions("dogs") == [4]
    with manager.models.use(Target("cats", label="stable")) as servable:
        assert servable.version == 3


@pytest.mark.parametrize(
    ("models", "told"),
    [
        (['name: "cats" base_path: "/" model_platform: "other"'], "Model cats requests unsupported platform 'other'"),
        (['name: "cats" base_path: "/cats"'], 'write model_platform: "tensorflow"'),
        (['name: "cats" base_path: "cats" model_platform: "tensorflow"'], "to have an absolute path or URI"),
        (['name: "cats" base_path: "/absent" model_platform: "tensorflow"'], "Could not find base path /absent"),
        (['base_path: "/cats" model_platform: "tensorflow"'], "has no name"),
        (['name: "a" base_path: "/" model_type: TENSORFLOW model_platform: "tensorflow"'], "Illegal setting both"),
        (['name: "cats"', 'name: "cats"'], "Illegal to list model cats multiple times in config list"),
        (["nmae: 3"], "is not a ModelServerConfig in text form"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_in_one_sentence(tmp_path: pathlib.Path, models: list[str], told: str) -> None:
    path = write_config(tmp_path, *models)
    with pytest.raises(ArtifactError) as caught:
        read_model_config(path)
    assert told in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_without_models_and_one_that_is_absent_are_refused(tmp_path: pathlib.Path) -> None:
    empty = tmp_path / "models.config"
    empty.touch()
    with pytest.raises(ArtifactError, match="holds no model_config_list"):
        read_model_config(empty)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_model_config(tmp_path / "absent")


def test_a_label_of_a_version_that_is_not_served_is_refused_at_the_start(root: pathlib.Path) -> None:
    path = write_config(root, model(root, "cats", 'version_labels { key: "stable" value: 3 }'))
    manager = VersionManager(Models(), serving=FakeModels().serving, tell=lambda _: None)
    with pytest.raises(
        ArtifactError, match=r"assign label to version 3 of model cats, .*; serve that version, or move"
    ):
        manager.start(read_model_config(path), poll_wait_secs=0)


def test_a_changed_file_is_served_and_one_that_cannot_be_used_changes_nothing(root: pathlib.Path) -> None:
    path = write_config(root, model(root, "cats"))
    told: list[str] = []
    loads = FakeModels()
    manager = VersionManager(Models(), serving=loads.serving, tell=lambda _: None)
    manager.start(read_model_config(path), poll_wait_secs=0)
    config_file = ConfigFile(path, manager, tell=told.append)
    config_file.reload_if_changed()
    assert told == []
    write_config(root, model(root, "cats"), model(root, "dogs"))
    config_file.reload_if_changed()
    assert manager.models.names == ["cats", "dogs"]
    shutil.rmtree(root / "dogs")
    write_config(root, model(root, "dogs"))
    config_file.reload_if_changed()
    config_file.reload_if_changed()
    assert manager.models.names == ["cats", "dogs"]
    assert told[0] == f"{path} was read again"
    assert told[1].startswith(f"{path} is not used, and the models stay: {path}: Could not find base path")
    assert len(told) == 2


def choose(root: pathlib.Path, *labels: str, all_versions: bool = False) -> ModelConfig:
    chosen = choose_models(root / "cats", None, name=None, all_versions=all_versions, labels=labels)
    (config,) = chosen.configs
    return config


def test_the_arguments_of_the_command_choose_versions_and_labels(root: pathlib.Path) -> None:
    assert choose(root) == ModelConfig("cats", root / "cats", LATEST, {})
    assert choose(root, all_versions=True).policy == ALL
    both = choose(root, "stable=3", "canary=4")
    assert both.labels == {"stable": 3, "canary": 4}
    assert both.policy == VersionPolicy("specific", versions=frozenset({3, 4}))
    assert choose(root, "stable=3", all_versions=True).policy == ALL


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["stable"], "--label 'stable' is not a label and a version; write for instance --label stable=3"),
        (["=3"], "is not a label and a version"),
        (["stable=new"], "is not a label and a version"),
        (["stable=3", "stable=4"], "--label gives stable to two versions, 3 and 4; leave one out"),
    ],
)
def test_labels_that_name_no_version_are_refused(root: pathlib.Path, labels: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        choose(root, *labels)


def test_a_file_and_arguments_that_say_what_to_serve_contradict_each_other(root: pathlib.Path) -> None:
    path = write_config(root, model(root, "cats"))
    with pytest.raises(UsageError, match="--name and --model-config-file both say what to serve; leave --name out"):
        choose_models(None, path, name="x", all_versions=False, labels=[])
    with pytest.raises(UsageError, match="there is nothing to serve; give MODEL or --model-config-file FILE"):
        choose_models(None, None, name=None, all_versions=False, labels=[])
    assert [c.name for c in choose_models(None, path, name=None, all_versions=False, labels=[]).configs] == ["cats"]


def test_the_address_of_each_model_is_printed(root: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(root, model(root, "cats"), model(root, "dogs"))
    chosen = choose_models(None, path, name=None, all_versions=False, labels=[])
    versions = {"cats": [4], "dogs": [3, 4]}
    chosen.tell_address("http://h:1", versions, grpc=None, json=True)
    assert json.loads(capsys.readouterr().out) == {"url": "http://h:1", "grpc": None, "models": versions, "curl": None}
    chosen.tell_address("http://h:1", versions, grpc=None, json=False)
    told = capsys.readouterr().out
    assert "serving cats at http://h:1/v1/models/cats" in told
    assert "serving dogs at http://h:1/v1/models/dogs" in told
