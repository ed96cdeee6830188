"""Recipes and `--set`: defaults, overrides, and an answer to every kind of mistake."""

import pathlib

import pytest
import yaml

from trainer.config.config import Config, load_config, parse_config
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
    recipe.write_text("distribute: {xla: on, precision: float32}\n")
    config = load_config(recipe, ["distribute.xla=off"], flags={"distribute": {"precision": "mixed_bfloat16"}})
    assert config.distribute.xla == "off" and config.distribute.precision == "mixed_bfloat16"


def test_on_off_yes_and_no_are_text_and_numbers_may_be_scientific() -> None:
    config = load_config(
        overrides=["features.cache=on", "data.cache=off", "data.path=no", "optimizer.learning_rate=1e-3"]
    )
    assert (config.features.cache, config.data.cache, config.data.path) == ("on", "off", "no")
    assert config.optimizer.learning_rate == 0.001


# As YAML 1.1 reads them plain: 7, True, False, None, 1000, 16, 90 in base 60, infinity, a date, and a merge.
NAMES = ["07", "yes", "off", "null", "~", "1_000", "0x10", "1:30", ".inf", "2024-01-01", "=", "on", "y", "1e3"]


@pytest.mark.parametrize("name", NAMES)
def test_classes_are_named_as_they_are_written(name: str, tmp_path: pathlib.Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"train:\n  class_weights:\n    {name}: 2\n    other: 3\n")
    expected = {name: 2.0, "other": 3.0}
    assert load_config(recipe).train.class_weights == expected
    written = load_config(overrides=[f"train.class_weights={{{name}: 2, other: 3}}"])
    assert written.train.class_weights == expected
    # And as a run writes them out.
    recipe.write_text(written.to_yaml())
    assert load_config(recipe) == written


def test_a_recipe_may_repeat_itself_by_alias_and_no_key_is_lost(tmp_path: pathlib.Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: &all {resize: squash}\ntrain:\n  <<: {seed: 1, epochs: 3}\n  seed: 2\n")
    config = load_config(recipe)
    assert (config.train.seed, config.train.epochs, config.data.resize) == (2, 3, "squash")
    recipe.write_text("train:\n  seed: 1\n  epochs: 3\n  seed: 2\n")
    with pytest.raises(ConfigError, match=r"the key 'seed' is there twice"):
        load_config(recipe)


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
        ("train.global_batch_size=99999999999999999999", "less than or equal to 2147483647"),
        ("train.seed=4294967296", "less than or equal to 4294967295"),
        ("train.epochs=1e300", "less than or equal to 2147483647"),
        ("train.epochs=.inf", "is inf: input should be a finite number"),
        ("optimizer.learning_rate=.nan", "finite number"),
        ("augment.flip=yes", "is 'yes': input should be a valid boolean; write true or false"),
        ("optimizer.name=adamm", "'sgd', 'adam', 'adamw' or 'lars'"),
        ("train", "is not of the form section.key=value"),
        ("train.epochs=[", "is not YAML"),
        ("train.class_weights={a: 1, a: 2}", "the key 'a' is there twice; write it once"),
        ("data.path=2024", "write it in quotes, on a command line in two pairs: --set data.path='\"TEXT\"'"),
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


def test_a_run_from_before_a_setting_was_added_keeps_its_identity() -> None:
    def identity(*overrides: str) -> str:
        return load_config(overrides=list(overrides)).identity(dataset_hash="d", precision="float32")

    before = "1814a9ada1631f31346b1ab39597895ada2c1ee1d8e7b80f3dbd025023bb7118"
    assert identity() == before
    assert identity("model.head=replace") == before
    assert load_config().identity(dataset_hash="d", precision="float32", head="keep") != before
    for added in ("augment.rotation_degrees=20", "augment.shift=0.1", "augment.zoom=0.1"):
        assert identity(added) != before


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_valid_and_states_no_default(recipe: pathlib.Path) -> None:
    load_config(recipe)
    defaults = Config().model_dump(mode="json")
    for section, settings in yaml.safe_load(recipe.read_text()).items():
        for key, value in settings.items():
            assert value != defaults[section][key], f"{section}.{key} is the default"
