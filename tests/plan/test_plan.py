"""The plan: nested in code and flat in `plan.json`. `flat_plan.json` is of a version whose plan had no parts."""

import json
import pathlib
import shutil

import pydantic
import pytest

from trainer.config.config import load_config
from trainer.distribute.topology import Topology
from trainer.errors import DataError, UsageError
from trainer.plan.plan import Plan, make_plan
from trainer.system import memory

FLAT = pathlib.Path(__file__).with_name("flat_plan.json").read_text(encoding="utf-8")
EARLIER = pathlib.Path(__file__).parents[1] / "compatibility/made_by_0_1_0"
SETTINGS = [
    "distribute.device=cpu",
    "model.backbone=mobilenet_v2",
    "model.weights=none",
    "model.image_size_px=32",
    "model.trainable=head",
    "train.unfreeze=[{epoch: 1, trainable: all}]",
    "train.class_weights=balanced",
    "train.global_batch_size=30",
    "train.epochs=3",
    "augment.preset=light",
    "optimizer.warmup_epochs=1",
    "optimizer.scaling=linear",
    "checkpoint.every_steps=5",
    "data.run_length=8",
]


def plan_of(tmp_path: pathlib.Path, *settings: str) -> Plan:
    shutil.copytree(EARLIER / "dataset", tmp_path / "dataset")
    return plan_of_dataset(tmp_path, *settings)


def plan_of_dataset(tmp_path: pathlib.Path, *settings: str) -> Plan:
    replicas = Topology(strategy="mirrored", device="cpu", num_local_replicas=4)
    return make_plan(load_config(overrides=[*SETTINGS, *settings]), tmp_path / "dataset", replicas, [])


def test_a_plan_is_written_as_before_it_had_parts(tmp_path: pathlib.Path) -> None:
    plan = plan_of(tmp_path)
    assert plan.model_dump_json(indent=2) + "\n" == FLAT.replace("/data/dataset", str(tmp_path / "dataset"))
    assert list(plan.model_dump(mode="json").items()) == list(json.loads(plan.model_dump_json()).items())


def test_a_flat_plan_is_read_into_its_parts_and_written_as_it_was() -> None:
    plan = Plan.model_validate_json(FLAT)
    assert (plan.data.dataset_name, plan.model.backbone, plan.replicas.num_replicas) == ("photos", "mobilenet_v2", 4)
    assert plan.schedule.stages[1] == (6, 18, 32, "all") and plan.epochs.num_ends == 3
    assert plan.model_dump_json(indent=2) + "\n" == FLAT


def test_the_plan_of_an_earlier_version_is_read_and_keeps_what_it_says() -> None:
    earlier = json.loads((EARLIER / "run/plan.json").read_text(encoding="utf-8"))
    written = Plan.model_validate(earlier).model_dump(mode="json")
    assert written == {**earlier, "head": "replace", "to_last_layer": False, "head_reason": ""}


def test_a_field_that_no_part_has_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="num_gpus"):
        Plan.model_validate({**json.loads(FLAT), "num_gpus": 1})


def test_runs_longer_than_the_split_are_refused_before_the_start(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match="run_length is 200, and there are 180 training images"):
        plan_of(tmp_path, "data.run_length=200")


def test_a_validation_split_whose_logits_do_not_fit_is_refused_before_the_start(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000)
    with pytest.raises(UsageError, match="evaluating the 60 validation images on 3 classes takes"):
        plan_of(tmp_path)


def test_a_dataset_without_validation_images_is_refused_before_the_start(tmp_path: pathlib.Path) -> None:
    shutil.copytree(EARLIER / "dataset", tmp_path / "dataset")
    file = tmp_path / "dataset/manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    del manifest["splits"]["validation"]
    file.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(DataError, match="has no validation images"):
        plan_of_dataset(tmp_path)
