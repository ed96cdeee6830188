"""The rules for names and versions, one function each; every command, file and server asks the same one.

Nothing here needs TensorFlow.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import pydantic

from trainer.errors import DataError, UsageError

# The longest name of a file or folder that common file systems hold, in bytes of UTF-8.
MAX_CLASS_NAME_BYTES: Final = 255
# A path component, a URL component and a TensorFlow Serving model name in one.
MODEL_NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
# TensorFlow Serving holds a version in a signed integer of 64 bits; 0 is what it calls a model without one.
MIN_VERSION: Final = 1
MAX_VERSION: Final = 2**63 - 1
# Room for what the objects' names and Kubernetes add to it, up to the 63 characters of a Service.
MAX_OBJECT_PREFIX: Final = 40

_HASH_CHARS = 8
# Control characters (also the line ends \v, \f and U+0085), line and paragraph separators, and surrogates, which are
# what Python makes of file names that are not UTF-8.
_NOT_TEXT = {"Cc": "a control character", "Zl": "a line separator", "Zp": "a line separator", "Cs": "a broken one"}
# Two names that differ in these alone look the same. The joiners U+200C and U+200D are part of how words are spelled.
_INVISIBLE = frozenset("\u00ad\u200b\u200e\u200f\u2060\ufeff\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def normalize_class_name(name: str) -> str:
    """Return `name` in the composed form (NFC): "é" is one class, however a file system or an editor spells it.

    https://www.unicode.org/reports/tr15/
    """
    return unicodedata.normalize("NFC", name)


def find_class_name_fault(name: str) -> str | None:
    """Return the rule that `name` breaks, as the end of a sentence about it; None where it is a class name.

    A class name is one line of `labels.txt`, a cell of tables, a part of JSON, and often a folder: text of 1 to
    `MAX_CLASS_NAME_BYTES` bytes in the form NFC, on one line, without white space around it.
    """
    if not name:
        return "is empty"
    for character in name:
        kind = _NOT_TEXT.get(unicodedata.category(character))
        if kind is not None or character in _INVISIBLE:
            return f"has a character that is not text (U+{ord(character):04X}, {kind or 'an invisible one'})"
    if name != name.strip():
        return "has white space around it"
    if len(name.encode()) > MAX_CLASS_NAME_BYTES:
        return f"is {len(name.encode()):,} bytes long, where {MAX_CLASS_NAME_BYTES} are the most"
    if name != normalize_class_name(name):
        return "is not in the composed form of Unicode (NFC)"
    return None


def check_class_names(class_names: Sequence[str]) -> None:
    """Raise DataError if one of `class_names` is none (`find_class_name_fault`), or two are the same."""
    seen: set[str] = set()
    for name in class_names:
        fault = find_class_name_fault(name)
        if fault is not None:
            raise DataError(f"the class name {show_name(name)} {fault}; rename the class")
        if name in seen:
            raise DataError(f"two classes are called {name!r}; give each class a name of its own")
        seen.add(name)


def find_spelling_twins(class_names: Iterable[str]) -> tuple[str, str] | None:
    """Return two different names that Unicode holds for the same text (`normalize_class_name`), if there are any."""
    spelled: dict[str, str] = {}
    for name in class_names:
        first = spelled.setdefault(normalize_class_name(name), name)
        if first != name:
            return first, name
    return None


def show_name(name: str) -> str:
    """Quote `name` for a message: invisible characters are written out, and the middle of a long one is left out."""
    shown = name if len(name) <= 60 else f"{name[:40]}...{name[-10:]}"
    return "'" + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown) + "'"


def check_model_name(name: str) -> None:
    """Raise UsageError if `name` cannot be a directory, part of a URL and the name of a served model at once."""
    if not re.fullmatch(MODEL_NAME_PATTERN, name):
        raise UsageError(
            f"the model name {show_name(name)} is not 1 to 128 letters, digits, dots, dashes and underscores that "
            "begin with a letter or a digit; give one with --name"
        )


def check_version(version: int) -> None:
    """Raise UsageError if `version` is no version of a model that TensorFlow Serving can serve."""
    if not MIN_VERSION <= version <= MAX_VERSION:
        raise UsageError(
            f"the version {show_number(version)} is out of range; give a whole number from {MIN_VERSION} to "
            f"{MAX_VERSION} (2^63 - 1, the largest that TensorFlow Serving knows)"
        )


def show_number(number: int) -> str:
    """Write `number` for a message; of one with too many digits for Python or a reader, say how long it is."""
    return str(number) if abs(number) < 10**40 else f"of {number.bit_length():,} bits"


def parse_version(name: str) -> int | None:
    """Return the version that a directory under a base path, or a part of a URL, names; None where it is none.

    Zeros in front count for nothing, as in TensorFlow Serving, whose test model has the version 00000123.
    """
    if not (name.isascii() and name.isdigit() and len(name) <= MAX_CLASS_NAME_BYTES):
        return None
    version = int(name)
    return version if version <= MAX_VERSION else None


def object_prefix(model_name: str) -> str:
    """Return the beginning of the names of a model's Kubernetes objects, different for any two models: "digits-".

    A name that is already one of Kubernetes (RFC 1035, so that a Service may begin with it) is taken as it is. Where
    anything had to be changed or cut, a hash of the name stands behind it: "cats_v1" is "cats-v1-2ba83eab-". A name
    that ends like such a hash gets one as well, or it could be that of another model.
    """
    label = re.sub(r"[^a-z0-9]+", "-", model_name.lower()).strip("-")
    if not label[:1].isalpha():
        label = f"model-{label}".strip("-")
    looks_hashed = re.search(rf"-[0-9a-f]{{{_HASH_CHARS}}}$", label) is not None
    if label == model_name and len(label) <= MAX_OBJECT_PREFIX and not looks_hashed:
        return f"{label}-"
    digest = hashlib.sha256(model_name.encode()).hexdigest()[:_HASH_CHARS]
    return f"{label[: MAX_OBJECT_PREFIX - _HASH_CHARS - 1].strip('-')}-{digest}-"


def check_namespace(namespace: str) -> None:
    """Raise UsageError if `namespace` is no label of RFC 1123, which Kubernetes wants."""
    if not _NAMESPACE.fullmatch(namespace):
        raise UsageError(
            f"{show_name(namespace)} is no name of a namespace; give --namespace 1 to 63 lower-case letters, digits "
            "and inner '-'"
        )


def _validate_class_names(class_names: list[str]) -> list[str]:
    try:
        check_class_names(class_names)
    except DataError as e:
        raise ValueError(str(e)) from None
    return class_names


# Fields of the files that carry them; their readers turn a breach into an error that names the file.
ClassNames = Annotated[list[str], pydantic.AfterValidator(_validate_class_names)]
ModelName = Annotated[str, pydantic.Field(pattern=MODEL_NAME_PATTERN)]
Version = Annotated[int, pydantic.Field(ge=MIN_VERSION, le=MAX_VERSION)]
