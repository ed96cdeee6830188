"""What `trainer backbones` says of each backbone, measured again, and against published figures."""

import importlib.util
import json
import pathlib
import sys
from typing import Any

import keras
import pytest

from trainer.cli.app import main
from trainer.model.backbones.catalogue import load_catalogue
from trainer.model.backbones.flops import count_multiply_adds
from trainer.model.backbones.registry import list_backbones

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
FACTS = {facts.name: facts for facts in load_catalogue()}


def test_every_backbone_of_the_registry_is_listed_and_no_other() -> None:
    assert sorted(FACTS) == list_backbones()


# Multiply-adds in units of 10^9: the papers' tables, and those of torchvision and of the EfficientNet-Lite release.
@pytest.mark.parametrize(
    ("name", "published"),
    [
        # The paper's, with the stride in the first convolution of a block; 4.1 where it is in the second.
        ("resnet50", 3.8),
        ("resnet101", 7.6),
        ("resnet152", 11.3),
        ("vgg16", 15.5),
        ("vgg19", 19.6),
        ("mobilenet", 0.569),
        ("mobilenet_v2", 0.300),
        ("mobilenet_v3_large", 0.219),
        ("efficientnet_b0", 0.39),
        ("efficientnet_b4", 4.2),
        ("efficientnet_lite0", 0.407),
        ("efficientnet_v2_s", 8.4),
        ("densenet121", 2.87),
        ("inception_v3", 5.7),
        ("xception", 8.4),
        ("convnext_tiny", 4.5),
        ("nasnet_mobile", 0.564),
        ("nasnet_large", 23.8),
    ],
)
def test_the_work_for_an_image_is_that_which_was_published(name: str, published: float) -> None:
    assert FACTS[name].multiply_adds / 1e9 == pytest.approx(published, rel=0.06)


@pytest.fixture(scope="module")
def measuring() -> Any:
    spec = importlib.util.spec_from_file_location("measure_backbones", REPOSITORY / "scripts" / "measure_backbones.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v2", "efficientnet_lite0", "resnet50_v2"])
def test_the_file_says_what_the_script_measures(name: str, measuring: Any) -> None:
    assert measuring.measure(name) == FACTS[name]


def test_multiply_adds_are_counted_by_hand() -> None:
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.Conv2D(6, 3, padding="same", strides=2),  # 4 x 4 places
            keras.Sequential([layers.Conv2D(6, 3, groups=2, padding="same"), layers.ReLU()]),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.SeparableConv2D(5, 3),  # 2 x 2 places
            layers.Conv2DTranspose(3, 2, strides=2),  # from 2 x 2 places
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    by_hand = 16 * (3 * 3 * 4 * 6) + 16 * (3 * 3 * 3 * 6) + 16 * (3 * 3 * 6) + 4 * (3 * 3 * 6 + 6 * 5)
    by_hand += 4 * (2 * 2 * 5 * 3) + 48 * 10
    assert count_multiply_adds(network) == by_hand
    with pytest.raises(ValueError, match="no fixed input size"):
        count_multiply_adds(keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 3)]))


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["trainer", "backbones", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_weights_that_are_at_hand_are_told_from_those_to_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5").touch()
    assert _run(monkeypatch, "--json") == 0
    answer = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert answer["vgg16"]["weights"] == "cached"
    assert answer["vgg19"]["weights"] == "downloadable"
    assert answer["efficientnet_lite0"]["weights"] == "bundled"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert FACTS["efficientnet_lite0"].weights == "not installed"


def test_a_filter_leaves_out_the_rest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(monkeypatch, "MobileNet-V3") == 0
    printed = capsys.readouterr().out
    assert "mobilenet_v3_large" in printed and "0.21 G" in printed and "3.0 M" in printed
    assert "mobilenet_v2" not in printed
    assert _run(monkeypatch) == 0
    assert "…" not in capsys.readouterr().out  # it fits 80 columns
    assert _run(monkeypatch, "alexnet") == 2
    assert "no backbone has 'alexnet' in its name" in capsys.readouterr().err
