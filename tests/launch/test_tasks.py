"""Several labels an image, two classes with one logit, and a rare class: trained on drawings of digits and measured."""

import json
import pathlib
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from export.pipeline.from_run import export_request_of
from export.pipeline.options import ExportOptions
from tests import small_backbone
from trainer.config.config import load_config
from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset
from trainer.distribute.mirrored import make_engine
from trainer.distribute.topology import Topology
from trainer.errors import ConfigError
from trainer.evaluation.evaluate_run import evaluate_run
from trainer.launch.plan_run import plan_run
from trainer.launch.start_run import start_run
from trainer.metrics.evaluation import Evaluation
from trainer.run.run_dir import RunDir

pytestmark = pytest.mark.slow

# What is said of a digit; some have several of these, and every one has at least one.
TRAITS = {
    "even": {0, 2, 4, 6, 8},
    "odd": {1, 3, 5, 7, 9},
    "with a loop": {0, 6, 8, 9},
    "prime": {2, 3, 5, 7},
}
QUICK = [
    "distribute.device=cpu",
    *small_backbone.SETTINGS,
    "model.image_size_px=32",
    "model.trainable=head",
    "train.epochs=5",
    "train.global_batch_size=32",
    "optimizer.learning_rate=0.01",
]


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """1,000 digits as PNG files; `<number>-<digit>.png`."""
    directory = tmp_path_factory.mktemp("drawings")
    digits = load_digits()
    for i, (pixels, digit) in enumerate(zip(digits.images[:1000], digits.target[:1000], strict=True)):
        image = Image.fromarray((pixels * 15.9).astype("uint8"))
        image.resize((32, 32), Image.Resampling.BICUBIC).save(directory / f"{i:04}-{digit}.png")
    return directory


def prepare(drawings: pathlib.Path, name: str, labels_of: Any) -> pathlib.Path:
    lines = []
    for path in sorted(drawings.glob("*.png")):
        labels = labels_of(int(path.stem[-1]))
        lines.append(json.dumps({"path": path.name, "labels" if isinstance(labels, list) else "label": labels}))
    (listing := drawings / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    out = drawings.parent / name
    prepare_dataset(str(listing), out, options=PrepareOptions())
    return out


@pytest.fixture(scope="module")
def traits(drawings: pathlib.Path) -> pathlib.Path:
    return prepare(drawings, "traits", lambda digit: [name for name, digits in TRAITS.items() if digit in digits])


@pytest.fixture(scope="module")
def rare(drawings: pathlib.Path) -> pathlib.Path:
    """One image in ten is positive. Classes are in the order of their names."""
    return prepare(drawings, "rare", lambda digit: "the eight" if digit == 8 else "another")


def train(dataset: pathlib.Path, run_dir: pathlib.Path, *settings: str) -> RunDir:
    config = load_config(overrides=[*QUICK, f"data.path={dataset}", *settings])
    planned = plan_run(config, run_dir=run_dir, resume=True, note=lambda _: None)
    start_run(planned, lambda _: None)
    return planned.run


def evaluate(run: RunDir) -> Evaluation:
    return evaluate_run(run, "test", make_engine(Topology(strategy="single", device="cpu", num_local_replicas=1)))


@pytest.fixture(scope="module")
def of_several(traits: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train(traits, tmp_path_factory.mktemp("several") / "run", "checkpoint.best_metric=average_precision")


def test_several_labels_are_learnt_each_by_itself(of_several: RunDir) -> None:
    found = evaluate(of_several)
    assert found.task == "multi_label"
    assert found.ranking is not None and found.ranking.average_precision is not None
    # By chance it is the share of the images that have the class: 0.45 on average.
    assert found.ranking.average_precision > 0.75
    # A softmax would make the four add up to 1: two of them could never be above one half together.
    assert found.at_thresholds is not None
    assert min(c.recall for c in found.classes) > 0.4


def test_cached_and_decoded_images_have_the_same_several_labels(traits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    runs = [
        train(traits, tmp_path / cache, f"data.cache={cache}", "train.epochs=0.2", "log.every_steps=1")
        for cache in ("off", "memory")
    ]
    logs = [[json.loads(line)["loss"] for line in run.metrics_file.read_text().splitlines()] for run in runs]
    assert logs[0] == logs[1]


def test_an_export_says_of_each_of_several_labels_whether_it_is_there(of_several: RunDir) -> None:
    export_request = export_request_of(of_several, ExportOptions(name="m"), version=1)
    assert export_request.signature.task == "multi_label" and export_request.signature.has_output("predicted")
    assert export_request.signature.class_names == sorted(TRAITS)


def test_a_rare_class_is_found_with_balanced_weights_and_ranked_well_by_one_logit(
    rare: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    settings = ("train.task=binary", "model.backbone=efficientnet_lite0", "model.pixels=null")
    plain = evaluate(train(rare, tmp_path / "plain", *settings))
    balanced = evaluate(train(rare, tmp_path / "balanced", *settings, "train.class_weights=balanced"))
    assert (plain.task, plain.classes[1].name) == ("binary", "the eight")
    assert plain.ranking is not None and plain.ranking.roc_auc is not None
    assert plain.ranking.roc_auc > 0.85
    assert balanced.classes[1].recall > plain.classes[1].recall
    assert balanced.classes[1].recall > 0.6


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        (["train.task=single_label"], "train.task is single_label, and images of the dataset"),
        (["data.sampling=class_balanced"], "use --set train.class_weights=balanced"),
        (["checkpoint.best_metric=roc_auc"], "which is one of binary models, and this is a multi_label one"),
    ],
)
def test_what_several_labels_do_not_go_with_is_refused(
    traits: pathlib.Path, tmp_path: pathlib.Path, settings: list[str], answer: str
) -> None:
    with pytest.raises(ConfigError, match=answer):
        train(traits, tmp_path / "run", *settings)
