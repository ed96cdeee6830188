"""Recipes and `--set`: defaults, overrides, and an answer to every kind of mistake."""

import pathlib

import pytest
import yaml

from trainer.config import Config, load_config, parse_config
from trainer.errors import ConfigError

RECIPES = sorted((pathlib.Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_a_recipe_states_only_its_differences(tmp_path: pathlib.Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train:\n  epochs: 3\noptimizer:\n  learning_rate: 3e-4\n")
    config = load_config(recipe, ["train.seed=7", "model.dropout=0.5"])
    assert config.train.epochs == 3 and config.train.seed == 7
    assert config.optimizer.learning_rate == pytest.approx(3e-4)
    assert config.train.global_batch_size == Config().train.global_batch_size


def test_flags_win_over_set_and_set_over_the_recipe(tmp_path: pathlib.Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("distribute: {xla: 'on', precision: float32}\n")
    config = load_config(recipe, ["distribute.xla=off"], flags={"distribute": {"precision": "mixed_bfloat16"}})
    assert config.distribute.xla == "off" and config.distribute.precision == "mixed_bfloat16"


def test_the_written_configuration_reads_back_as_itself() -> None:
    config = load_config(overrides=["optimizer.learning_rate=1e-5", "data.path=photos"])
    assert parse_config(yaml.safe_load(config.to_yaml()), origin="itself") == config


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("train.epoch=3", "did you mean 'train.epochs'"),
        ("model.learning_rate=1", "did you mean 'optimizer.learning_rate'"),
        ("modle.dropout=0.1", "did you mean 'model'"),
        ("train.epochs=many", "train.epochs in the configuration is 'many': input should be a valid number"),
        ("train.global_batch_size=0", "greater than or equal to 1"),
        ("train.global_batch_size=1.5", "is 1.5: input should be a valid integer"),
        ("optimizer.name=adamm", "'sgd', 'adam', 'adamw' or 'lars'"),
        ("train", "is not of the form section.key=value"),
        ("train.epochs=[", "is not YAML"),
    ],
)
def test_a_mistake_is_answered_with_the_value_and_what_was_expected(override: str, answer: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(overrides=[override])
    assert answer in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_or_broken_recipe_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("train: [1,\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not readable YAML"):
        load_config(broken)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_valid_and_states_no_default(recipe: pathlib.Path) -> None:
    load_config(recipe)
    defaults = Config().model_dump(mode="json")
    for section, settings in yaml.safe_load(recipe.read_text()).items():
        for key, value in settings.items():
            assert value != defaults[section][key], f"{section}.{key} is the default"
