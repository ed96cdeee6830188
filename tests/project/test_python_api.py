"""The functions of `trainer`: what is public, and the example of docs/python.md run as it stands."""

import importlib
import inspect
import pathlib
import pkgutil
import re
import shutil
import typing

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import export
import serving
import trainer

pytestmark = pytest.mark.slow

DOCUMENTATION = pathlib.Path(trainer.__file__).parents[1] / "docs" / "python.md"
PUBLIC = [
    "Dataset",
    "Export",
    "Run",
    "StoppedOnRequest",
    "TrainerError",
    "UsageError",
    "__version__",
    "evaluate",
    "export",
    "predict",
    "prepare",
    "train",
    "verify",
]
FUNCTIONS = [name for name in PUBLIC if name.islower() and not name.startswith("_")]


@pytest.fixture(scope="module", autouse=True)
def _every_module_is_imported() -> None:
    """A folder that is imported becomes an attribute of its package, and could take the name of a function."""
    for package in (trainer, export, serving):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def test_the_public_names_do_not_change_by_accident() -> None:
    assert trainer.__all__ == PUBLIC


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_is_typed_documented_and_not_hidden_by_a_folder(name: str) -> None:
    function = getattr(trainer, name)
    assert inspect.isfunction(function)
    assert "Args:" in function.__doc__ and "Raises:" in function.__doc__
    parameters = inspect.signature(function).parameters
    assert set(parameters) | {"return"} == set(function.__annotations__)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda place: trainer.prepare(place / "none", place / "out"), "none"),
        (lambda place: trainer.train(place / "none", settings={"distribute.device": "cpu"}), "does not exist"),
        (lambda place: trainer.train(place, settings={"train.epoch": 2}), "did you mean 'train.epochs'"),
        (lambda place: trainer.evaluate(place), "is not a run directory"),
        (lambda place: trainer.export(place, place / "out"), "is not a run directory"),
        (lambda place: trainer.predict(place / "none", []), "does not exist"),
        (lambda place: trainer.verify(place), "is not a finished export"),
    ],
)
def test_what_is_wrong_is_an_exception(call: typing.Any, message: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(trainer.UsageError, match=message):
        call(tmp_path)


def test_the_example_of_the_documentation_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load_digits()
    for digit in (0, 1):
        folder = tmp_path / "photos" / f"digit {digit}"
        folder.mkdir(parents=True)
        for i in np.flatnonzero(digits.target == digit)[:100]:
            Image.fromarray((digits.images[i] * 15.9).astype(np.uint8)).save(folder / f"{i}.png")
    shutil.copy(folder / f"{i}.png", tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, str(DOCUMENTATION), "exec"), {})
    said = capsys.readouterr().out
    assert "['digit 0', 'digit 1']" in said
    assert float(re.search(r"accuracy ([\d.]+) over 40 images", said)[1]) > 0.9
    assert "model 1 ['tflite/photos-float32.tflite', 'onnx/photos.onnx']" in said
    assert said.splitlines()[-1].startswith("digit 1 ")
