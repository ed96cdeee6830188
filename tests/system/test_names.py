"""Names and versions: one rule each, and the same refusal at every door."""

import importlib.resources
import pathlib
import unicodedata

import pytest
import yaml

from trainer.errors import DataError, UsageError
from trainer.system.names import (
    MAX_VERSION,
    check_class_names,
    check_model_name,
    check_namespace,
    check_version,
    find_spelling_twins,
    object_prefix,
    parse_version,
)

# Every line end that Python's splitlines or Unicode knows, and what cannot be written, seen or told apart.
NO_CLASS_NAMES = {
    **{f"a line end U+{ord(end):04X}": f"ro{end}se" for end in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"},
    "a NUL": "a\0b",
    "an escape sequence": "\x1b[31mred",
    "half a surrogate pair": "caf\udce9",
    "a change of direction": "\u202egnp.tac",
    "a byte order mark": "\ufeffcat",
    "a zero width space": "ca\u200bt",
    "a soft hyphen": "ca\u00adt",
    "nothing": "",
    "blanks alone": "  ",
    "a blank before": " cat",
    "a no-break space behind": "cat\u00a0",
    "an accent apart": unicodedata.normalize("NFD", "café"),
    "256 bytes": "é" * 128,
}


@pytest.mark.parametrize("name", NO_CLASS_NAMES.values(), ids=NO_CLASS_NAMES.keys())
def test_what_is_no_class_name_is_refused_in_words_that_can_be_printed(name: str) -> None:
    with pytest.raises(DataError, match=r"^the class name '.*' .*; rename the class$") as refused:
        check_class_names(["fine", name])
    assert str(refused.value).isprintable()


def test_class_names_may_be_of_any_script_and_hold_marks_of_every_kind() -> None:
    of_scripts = ["café", "猫", "نی\u200cنی", "👩\u200d🔬", "tench, Tinca tinca", "x" * 255]
    of_marks = ["7", "yes", ":smile:", "[red]", "a|b", 'say "hi"', "Cat", "cat", "a  b", "-", "=1+1", "dog/poodle"]
    check_class_names([*of_scripts, *of_marks])
    with pytest.raises(DataError, match="two classes are called 'cat'"):
        check_class_names(["cat", "dog", "cat"])


def test_two_spellings_of_one_text_are_found() -> None:
    composed, apart = "Ångström", unicodedata.normalize("NFD", "Ångström")
    assert find_spelling_twins([composed, "b", apart]) == (composed, apart)
    assert find_spelling_twins([composed, "Angstrom", composed]) is None


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".a", "-a", "a b", "a\n", "a:b", "ä", "a" * 129, 'a"b', "a%2Fb"])
def test_what_is_no_model_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"^the model name .* is not 1 to 128 letters.*; give one with --name$"):
        check_model_name(name)


def test_model_names_that_are_files_urls_and_words_of_yaml_are_taken() -> None:
    for name in ("a", "cats_v1", "Cats.V1", "1e3", "null", "a" * 128):
        check_model_name(name)


@pytest.mark.parametrize("version", [0, -1, 2**63, 10**30, 10**5000], ids=range(5))
def test_a_version_that_no_server_holds_is_refused(version: int) -> None:
    with pytest.raises(UsageError, match=r"^the version .* is out of range; give a whole number from 1"):
        check_version(version)


def test_versions_are_those_of_tensorflow_serving() -> None:
    check_version(1)
    check_version(MAX_VERSION)
    names: dict[str, int | None] = {"1": 1, "00000123": 123, str(2**63 - 1): 2**63 - 1, "0": 0}
    names |= dict.fromkeys(["", "-1", "+1", "1.0", "1_0", "\u0661", "\u00b2", " 1", "0x1", str(2**63), "9" * 5000])
    assert {name: parse_version(name) for name in names} == names


# What another model, "9.", was called after.
TAKEN = object_prefix("9.").rstrip("-")


def test_no_two_models_have_the_same_objects() -> None:
    names = ["cats_v1", "cats-v1", "Cats.V1", "CATS-V1", "cats--v1", "cats-v1-", "7cats", "model-7cats", "a" * 40]
    names += [
        "a" * 41,
        "a" * 128,
        "a" * 127 + "b",
        "cats",
        "___",
        "---",
        "model",
        "9",
        "9.",
        "9-",
        object_prefix("9.")[:-1],
    ]
    prefixes = {object_prefix(name) for name in names}
    assert len(prefixes) == len(names)
    assert object_prefix("cats-v1") == "cats-v1-", "a name that needs no change is the name"
    for prefix in prefixes:
        assert len(prefix) <= 41 and prefix.endswith("-") and not prefix.endswith("--")
        check_namespace(f"{prefix}x")  # the characters are the same
        assert prefix[0].isalpha()


def test_a_models_prefix_cannot_make_an_object_of_another_models() -> None:
    """One name behind two prefixes would need one of the base's names to end in "-" and another of them."""
    root = pathlib.Path(str(importlib.resources.files("k8s")))
    files = [*root.glob("serving/*.yaml"), *root.glob("serving-loader/*.yaml")]
    objects = [item for file in files for item in yaml.safe_load_all(file.read_text()) if "metadata" in item]
    names = {item["metadata"]["name"] for item in objects} | {"model-server-config"}
    assert names >= {"model-server", "models", "model-loader"}
    assert not [(a, b) for a in names for b in names if a.endswith(f"-{b}")]


@pytest.mark.parametrize("namespace", ["", "A", "a_b", "-a", "a-", "a" * 64, "a.b", "a\n"])
def test_what_is_no_namespace_is_refused(namespace: str) -> None:
    with pytest.raises(UsageError, match=r"is no name of a namespace; give --namespace 1 to 63 lower-case letters"):
        check_namespace(namespace)
