"""What an export's card says beside its figures."""

import pathlib
import re
from typing import Any

import pytest
from digits_classifier import CLASS_NAMES, SIGNATURE

from export.documents.licence import describe_licence
from export.documents.model_card import FILE_NAME, render
from export.files.provenance import Provenance


@pytest.mark.parametrize(
    ("backbone", "weights", "words"),
    [
        ("efficientnet_lite0", "bundled", "ImageNet weights are Apache-2.0"),
        ("resnet50", "none", "Keras's, Apache-2.0; it started from random weights"),
        ("resnet50", "imagenet", "licence of its authors"),
        ("mobilenet_v2", "mine.h5", "other weights \\(mine.h5\\), whose licence is not known here"),
        ("path/to/mine.keras", "bundled", "the user's own file; .* not known here"),
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


def test_class_names_with_marks_of_markdown_are_shown_as_they_are(exported: Any) -> None:
    signature = SIGNATURE.model_copy(update={"class_names": ["a`b", "``c``", "<b>d</b>", "*e*", *CLASS_NAMES[4:]]})
    provenance = Provenance(
        run_name="run", run_identity="ab" * 32, global_step=1, which="best", backbone="small_cnn", weights="none",
        precision="float32", num_train_examples=1, config_yaml="",
    )  # fmt: skip
    card = render(signature, exported.report, provenance)
    for shown in ("`` a`b ``,", "``` ``c`` ```,", "`<b>d</b>`,", "`*e*`,"):
        assert f"\n{shown}\n" in card
