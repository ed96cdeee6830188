"""What an export's card says beside its figures."""

import pathlib
import re
from typing import Any

import pytest

from export.licence import describe_licence
from export.model_card import FILE_NAME


@pytest.mark.parametrize(
    ("backbone", "weights", "words"),
    [
        ("efficientnet_lite0", "bundled", "ImageNet weights are Apache-2.0"),
        ("resnet50", "none", "Keras's, Apache-2.0; it started from random weights"),
        ("resnet50", "imagenet", "licence of its authors"),
        ("mobilenet_v2", "mine.h5", "other weights \\(mine.h5\\), whose licence is not known here"),
        ("path/to/mine.keras", "bundled", "of the user's own; .* not known here"),
        ("hub:resnet_50_imagenet", "bundled", "preset resnet_50_imagenet of keras-hub"),
    ],
)
def test_the_licence_of_a_backbone_is_said_or_said_to_be_unknown(backbone: str, weights: str, words: str) -> None:
    assert re.search(words, describe_licence(backbone, weights))


def test_the_card_says_data_recipe_limits_sizes_latency_and_licence(exported: Any) -> None:
    card = (pathlib.Path(exported.directory) / FILE_NAME).read_text()
    for section in ("Data", "Training", "Accuracy", "Artifacts", "Latency", "Limits", "Licence", "How to call it"):
        assert f"\n## {section}\n" in card
    assert "trainer bench export EXPORT --record" in card
