"""The recipes that come with the trainer: all are valid, and layered under what the user says."""

import pathlib

import pytest

from trainer.config.config import list_recipes, load_config
from trainer.errors import ConfigError


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_begins_with_what_it_is_for(name: str) -> None:
    assert len(list_recipes()[name]) > 20


def test_a_file_of_the_users_own_and_flags_change_a_recipe(tmp_path: pathlib.Path) -> None:
    (mine := tmp_path / "trainer.yaml").write_text("train: {epochs: 3}\ndata: {path: photos}\n")
    config = load_config(mine, ["optimizer.learning_rate=0.5"], recipe="frozen", flags={"distribute": {"xla": "on"}})
    assert config.model.trainable == "head"
    assert (config.train.epochs, config.data.path) == (3.0, "photos")
    assert (config.optimizer.learning_rate, config.distribute.xla) == (0.5, "on")


@pytest.mark.parametrize(("name", "hint"), [("froozen", "did you mean 'frozen'"), ("zzz", "expected auto, or one of")])
def test_an_unknown_recipe_is_answered_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        load_config(recipe=name)
