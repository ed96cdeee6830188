"""The set-ups that are taught everywhere: each recipe is of the taught shape, and its two lines train on a stand-in."""

import json
import pathlib
import re
import shlex
from typing import Any

import keras
import numpy as np
import PIL.Image
import pytest

from tests.complete import IS_COMPLETE
from trainer.cli import study
from trainer.cli.app import main
from trainer.config.config import RECIPES_DIR, load_config
from trainer.data.dataset.manifest import Manifest
from trainer.model.classifier import build_configured
from trainer.system.private_api.keras_scopes import variables_without_memory

pytestmark = pytest.mark.slow

# Nothing can be downloaded here, and one step is enough to see that all of it fits together.
QUICK = ("--device=cpu", "--set=model.weights=none", "--set=train.epochs=1", "--set=features.cache=off")
SMALL = ("--set=model.image_size_px=32",)


def lines_of(recipe: str) -> list[list[str]]:
    """The commands in the comment of a recipe, `prepare` and `launch`, without "trainer"."""
    text = (RECIPES_DIR / f"{recipe}.yaml").read_text()
    return [shlex.split(line)[1:] for line in re.findall(r"^#     (trainer .*)$", text, re.MULTILINE)]


def trainer(*arguments: str) -> int:
    """Run the command line in this process; returns its exit status."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.setattr("sys.argv", ["trainer", *arguments])
        main()
    return int(exit_.value.code or 0)


def write_photos(folder: pathlib.Path, classes: list[str], count: int) -> pathlib.Path:
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (40, 50, 3), np.uint8)
            PIL.Image.fromarray(pixels).save(folder / name / f"{i:03}.jpg")
    return folder


def write_listing(folder: pathlib.Path) -> pathlib.Path:
    photos = write_photos(folder, ["all"], 30)
    labels = ["cat", "cat|dog", "dog"]
    rows = [f"all/{i:03}.jpg,{labels[i % 3]}" for i in range(30)]
    (photos / "photos.csv").write_text("\n".join(["path,labels", *rows]))
    return photos / "photos.csv"


def prepare(recipe: str, source: pathlib.Path, out: pathlib.Path, *more: str) -> Manifest:
    """Follow the recipe's line, with `source` for the one that it names."""
    command, _, *options = lines_of(recipe)[0]
    options[options.index("--out") + 1] = str(out)
    assert trainer(command, str(source), *options, *more) == 0
    return Manifest.load(out)


def launch(recipe: str, data: pathlib.Path, run: pathlib.Path, *more: str) -> dict[str, Any]:
    command = lines_of(recipe)[1]
    command[command.index("--data") + 1] = str(data)
    assert trainer(*command, f"--run-dir={run}", *QUICK, *more) == 0
    return json.loads((run / "plan.json").read_text())


def launch_or_plan(
    recipe: str, data: pathlib.Path, run: pathlib.Path, capsys: pytest.CaptureFixture[str], *more: str
) -> dict[str, Any]:
    """Launch a recipe whose parts another one trains too, or only plan it where not all tests are wanted."""
    if IS_COMPLETE:
        return launch(recipe, data, run, *more)
    command = lines_of(recipe)[1]
    command[command.index("--data") + 1] = str(data)
    capsys.readouterr()
    assert trainer(*command, f"--run-dir={run}", *QUICK, *more, "--dry-run", "--json") == 0
    return json.loads(capsys.readouterr().out)


def build(recipe: str, num_classes: int) -> Any:
    """The model of a recipe as it stands, in shape alone."""
    config = load_config(recipe=recipe)
    with variables_without_memory():
        return build_configured(
            config.model,
            task="binary" if config.train.task == "binary" else "single_label",
            num_classes=num_classes,
            image_size_px=config.model.image_size_px or 224,
            trainable=config.model.trainable,
            batch_norm="frozen" if config.model.batch_norm == "auto" else config.model.batch_norm,
        )


def kernels_of_head(model: Any) -> list[tuple[int, ...]]:
    return [tuple(layer.kernel.shape) for layer in model.layers if isinstance(layer, keras.layers.Dense)]


def num_trained(model: Any) -> int:
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


@pytest.mark.parametrize(
    ("recipe", "num_classes", "kernels"),
    [
        ("tutorial-resnet50-flowers", 5, [(2048, 512), (512, 5)]),
        ("tutorial-vgg16", 10, [(2048, 1024), (1024, 10)]),
        ("tutorial-vgg16-multi-label", 20, [(2048, 1024), (1024, 20)]),
        ("tutorial-resnet50-caltech101", 101, [(2048, 101)]),
        ("tutorial-resnet50-caltech101-augmented", 101, [(2048, 101)]),
        ("tutorial-resnet50-caltech101-earlier-layer", 101, [(1024, 101)]),
        ("tutorial-mobilenetv2-frozen", 2, [(1280, 1)]),
    ],
)
def test_the_head_alone_is_trained_and_is_of_the_taught_shape(
    recipe: str, num_classes: int, kernels: list[tuple[int, ...]]
) -> None:
    model = build(recipe, num_classes)
    assert kernels_of_head(model) == kernels
    assert num_trained(model) == sum(a * b + b for a, b in kernels)


def test_of_mobilenet_the_topmost_layers_are_trained_as_from_the_hundredth_on_in_keras() -> None:
    model = build("tutorial-mobilenetv2-unfrozen", 2)
    assert num_trained(model) == 1_862_721
    theirs = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(160, 160, 3))
    assert load_config(recipe="tutorial-mobilenetv2-unfrozen").model.trainable == f"from:{theirs.layers[100].name}"


@pytest.mark.parametrize(
    ("recipe", "optimizer", "batch_size", "epochs", "size_px"),
    [
        ("tutorial-resnet50-flowers", ("adam", 1e-3, "constant"), 32, 10, 180),
        ("tutorial-vgg16", ("adam", 1e-4, "constant"), 64, 10, 64),
        ("tutorial-vgg16-multi-label", ("adam", 1e-4, "constant"), 64, 10, 64),
        ("tutorial-resnet50-caltech101", ("adam", 1e-3, "constant"), 64, 5, None),
        ("tutorial-resnet50-caltech101-augmented", ("adam", 1e-3, "constant"), 64, 5, None),
        ("tutorial-resnet50-caltech101-earlier-layer", ("adam", 1e-3, "constant"), 64, 5, None),
        ("tutorial-mobilenetv2-scratch", ("adam", 1e-3, "constant"), 32, 10, 160),
        ("tutorial-mobilenetv2-frozen", ("adam", 1e-3, "constant"), 32, 10, 160),
        ("tutorial-mobilenetv2-unfrozen", ("adam", 1e-4, "constant"), 32, 10, 160),
    ],
)
def test_optimizer_batch_epochs_and_size_are_the_taught_ones(
    recipe: str, optimizer: tuple[str, float, str], batch_size: int, epochs: int, size_px: int | None
) -> None:
    config = load_config(recipe=recipe)
    assert (config.optimizer.name, config.optimizer.learning_rate, config.optimizer.schedule) == optimizer
    assert (config.train.global_batch_size, config.train.epochs, config.model.image_size_px) == (
        batch_size,
        epochs,
        size_px,
    )
    assert lines_of(recipe)[1][:3] == ["launch", "--recipe", recipe]


def test_flowers_are_divided_eighty_to_twenty_and_trained_squashed(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = "tutorial-resnet50-flowers"
    manifest = prepare(recipe, write_photos(tmp_path / "photos", list("abcde"), 10), tmp_path / "flowers")
    assert {name: split.class_counts for name, split in manifest.splits.items()} == {
        "train": [8] * 5,
        "validation": [2] * 5,
    }
    assert manifest.seed == 123
    launch(recipe, tmp_path / "flowers", tmp_path / "run", *SMALL)
    # Its next line is one that works: there is no test split.
    (line,) = re.findall(r"next:\s+trainer (evaluate .*)", capsys.readouterr().out)
    assert trainer(*shlex.split(line), "--device=cpu") == 0
    assert (tmp_path / "run/evaluation/validation.json").is_file()


def test_vgg16_is_trained_at_its_64_px_on_one_label_and_on_several(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare("tutorial-vgg16-multi-label", write_listing(tmp_path / "listed"), tmp_path / "several")
    plan = launch("tutorial-vgg16-multi-label", tmp_path / "several", tmp_path / "run of several")
    assert (plan["task"], plan["image_size_px"], plan["num_train_steps"]) == ("multi_label", 64, 1)
    prepare("tutorial-vgg16", write_photos(tmp_path / "photos", list("0123456789"), 4), tmp_path / "one")
    plan = launch_or_plan("tutorial-vgg16", tmp_path / "one", tmp_path / "run of one", capsys)
    assert (plan["task"], plan["image_size_px"], plan["num_train_steps"]) == ("single_label", 64, 1)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of `trainer study` run here; that they run in processes of their own is tested by itself."""
    monkeypatch.setattr(study, "run_command", lambda arguments, answers: trainer(*arguments))


def test_the_forms_of_caltech101_are_trained_without_the_background_class(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = [f"tutorial-resnet50-caltech101{form}" for form in ("", "-augmented", "-earlier-layer")]
    photos = write_photos(tmp_path / "photos", ["BACKGROUND_Google", "ant", "bee"], 10)
    manifest = prepare(recipes[0], photos, tmp_path / "data", "--exclude=BACKGROUND_Google")
    assert manifest.class_names == ["ant", "bee"]
    assert manifest.splits["test"].class_counts == [1, 1]
    # The plain form is the flowers' without a hidden layer, and the augmented one the plain one on changed images.
    launch(recipes[2], tmp_path / "data", tmp_path / "earlier layer", *SMALL)
    plan = launch_or_plan(recipes[1], tmp_path / "data", tmp_path / "augmented", capsys, *SMALL)
    assert plan["class_names"] == ["ant", "bee"]


@pytest.mark.usefixtures("in_process")
def test_the_three_arms_of_cats_against_dogs_come_side_by_side_by_one_command(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = [f"tutorial-mobilenetv2-{arm}" for arm in ("scratch", "frozen", "unfrozen")]
    manifest = prepare(arms[0], write_photos(tmp_path / "photos", ["Cat", "Dog"], 30), tmp_path / "pets")
    assert {name: split.class_counts for name, split in manifest.splits.items()} == {
        "train": [6, 6],
        "validation": [3, 3],
        "test": [3, 3],
    }
    capsys.readouterr()
    (command,) = {tuple(lines_of(arm)[2]) for arm in arms}
    places = {"pets": str(tmp_path / "pets"), "arms": str(tmp_path / "arms")}
    assert trainer(*(places.get(word, word) for word in command), *QUICK, *SMALL, "--json") == 0
    answer = capsys.readouterr().out
    compared = json.loads(answer[answer.rindex("\n{\n") :])
    assert [run["name"] for run in compared["runs"]] == arms and compared["split"] == "test"
    assert (tmp_path / "arms/comparison.html").is_file()
