"""`--recipe auto`: by the number of images and by what pretrained features make of them."""

import pathlib
import subprocess

import numpy as np
import pytest
from launching import command
from PIL import Image

from trainer.config.config import load_config
from trainer.data.dataset.storage import parse_path
from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset
from trainer.plan import recipe_choice
from trainer.plan.recipe_choice import choose_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Classes that nothing can tell apart."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("noise")
    for i in range(90):
        (folder / f"class{i % 3}").mkdir(exist_ok=True)
        pixels = random.integers(0, 256, [40, 40, 3], dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"class{i % 3}" / f"{i}.png")
    prepare_dataset(str(folder), out := folder.with_name("noise-set"), options=PrepareOptions())
    return out


def choose(dataset: pathlib.Path, *settings: str) -> recipe_choice.Choice:
    config = load_config(overrides=["model.image_size_px=64", *settings])
    return choose_recipe(config, parse_path(str(dataset)))


def test_few_images_like_the_pretraining_keep_the_backbone_frozen(digits: pathlib.Path) -> None:
    choice = choose(digits)
    assert choice.recipe == "frozen"
    assert "1439 training images of 10 classes are few" in choice.reason
    assert "They are like the pretraining images" in choice.reason


def test_few_images_that_the_features_cannot_tell_apart_unfreeze_step_by_step(noise: pathlib.Path) -> None:
    choice = choose(noise)
    assert choice.recipe == "staged"
    assert "They are unlike the pretraining images" in choice.reason


def test_many_images_fine_tune_and_without_weights_everything_is_learnt(
    digits: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose(digits, "model.weights=none").recipe == "scratch"
    monkeypatch.setattr(recipe_choice, "SMALL_DATASET", 1000)
    assert choose(digits).recipe == "finetune"


def test_the_command_says_what_it_chose_and_why(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    arguments = [f"--data={digits}", f"--run-dir={tmp_path / 'run'}", "--recipe=auto", "--device=cpu"]
    done = subprocess.run(
        command("launch", *arguments, "--set=model.image_size_px=64", "--dry-run"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "recipe frozen: 1439 training images" in " ".join(done.stderr.split())
    assert "trainable: head" in done.stdout
