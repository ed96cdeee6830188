"""`~` is the home directory at every door: each command, each setting that is a path, each source."""

import pathlib
import types
import typing

import pytest

from trainer.cli.app import main
from trainer.config.config import Config, load_config
from trainer.config.section import PathText
from trainer.data.sources import open_source
from trainer.errors import ConfigError, TrainerError, UsageError
from trainer.run.run_dir import RunDir
from trainer.system.paths import as_path, expand_argument

# Texts of settings that are no paths.
NAMES = {"distribute.hosts", "model.trainable", "model.features_at"}


@pytest.fixture
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The home directory, which has a folder `taken`; the current directory is another."""
    (tmp_path / "home" / "taken").mkdir(parents=True)
    (tmp_path / "home" / "taken" / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


COMMANDS = [
    "prepare ~/nowhere --out out",
    "prepare digits --out ~/taken",
    "prepare digits --out=~/taken",
    "prepare digits --out out --config=~/nowhere",
    "prepare tfrecords:~/nowhere --out out",
    "launch --data=~/nowhere --device=cpu",
    "launch --set=data.path=~/nowhere --device=cpu",
    "launch --config=~/nowhere",
    "evaluate ~/nowhere",
    "report ~/nowhere",
    "compare ~/nowhere ~/taken",
    "export ~/nowhere --out out",
    "verify ~/nowhere",
    "predict ~/nowhere 1.png",
    "publish ~/nowhere root",
    "rollback ~/nowhere",
    "manifests ~/nowhere --out out",
    "bench input ~/nowhere",
    "bench export ~/nowhere",
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_looks_in_the_home_directory(
    line: str, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["trainer", *line.split()])
    with pytest.raises(SystemExit) as exit_:
        main()
    told = " ".join(capfd.readouterr().err.split())
    assert exit_.value.code == 2, told
    assert str(home / "nowhere") in told or str(home / "taken") in told
    assert not list(pathlib.Path().iterdir()), "nothing of that name is made here"


def test_a_word_that_only_begins_so_stays_as_it_is(home: pathlib.Path) -> None:
    for word in ("~cats", "~nobody-of-this-name/x", "a~/b", "--set=train.task=~x", "-1~"):
        assert expand_argument(word) == word
    assert expand_argument("~") == str(home)
    assert expand_argument("--run-dir=~/a/~b") == f"--run-dir={home}/a/~b"
    assert as_path("./~/a") == pathlib.Path("~/a"), "a folder of that name is still to be had"
    with pytest.raises(UsageError, match=r"of nobody-of-this-name, who has none here; write \./~nobody"):
        as_path("~nobody-of-this-name/x")
    with pytest.raises(UsageError, match="is not UTF-8"):
        as_path(b"caf\xe9".decode(errors="surrogateescape"))


def test_every_setting_that_is_a_path_takes_it(home: pathlib.Path) -> None:
    texts = {
        f"{section}.{key}"
        for section, settings in Config()
        for key, field in type(settings).model_fields.items()
        if is_text(field.annotation) and f"{section}.{key}" not in NAMES
    }
    assert {"data.path", "data.cache_dir", "features.dir", "model.weights", "model.backbone"} <= texts
    for name in texts:
        section, key = name.split(".")
        config = load_config(overrides=[f"{name}=~/a"])
        assert getattr(getattr(config, section), key) == str(home / "a"), name
    with pytest.raises(ConfigError, match=r"data\.path in the configuration is '~nobody-of-this-name/x': the path"):
        load_config(overrides=["data.path=~nobody-of-this-name/x"])


def is_text(annotation: object) -> bool:
    """Whether a field may be any text, and not just some."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(is_text(part) for part in typing.get_args(annotation))
    return annotation in (str, PathText)


def test_a_recipe_and_the_library_take_it_too(home: pathlib.Path) -> None:
    (home / "recipe.yaml").write_text("data: {path: ~/photos}\n", encoding="utf-8")
    assert load_config(home / "recipe.yaml").data.path == str(home / "photos")
    assert RunDir("~/run").path == home / "run"
    with pytest.raises(TrainerError, match=str(home / "nowhere")):
        open_source("~/nowhere")
