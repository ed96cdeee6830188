"""Names of the numeric labels in TFRecords."""

import itertools
import pathlib
import re
from collections.abc import Sequence

from trainer.errors import DataError

_MAX_FILE_BYTES = 2**24


def read_label_file(path: pathlib.Path) -> dict[int, str] | list[str]:
    """Read the names in a labels.txt: a list, one per line, or a dict if every line is `NUMBER:NAME`.

    Raises:
        DataError: it is not UTF-8 text, or has a number twice.
    """
    with path.open("rb") as f:
        content = f.read(_MAX_FILE_BYTES)
    try:
        # Not splitlines, which also splits at U+2028 and others.
        lines = [line.strip() for line in re.split(r"\r\n?|\n", content.decode("utf-8-sig"))]
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not UTF-8 text ({e.reason}); save it as UTF-8") from None
    while lines and not lines[-1]:
        lines.pop()
    numbered = [re.fullmatch(r"(\d{1,18})\s*:\s*(.+)", line) for line in lines]
    if not lines or None in numbered:
        return lines
    names = {int(match[1]): match[2] for match in numbered if match is not None}
    if len(names) < len(lines):
        raise DataError(f"{path} gives a number two names; correct it")
    return names


class LabelNames:
    """The labels that occur and their names in the records, from which a name for each is resolved."""

    def __init__(self, source: str, from_file: dict[int, str] | list[str] | None) -> None:
        """Start without labels; `source` is for messages, `from_file` is the result of `read_label_file`."""
        self._source = source
        self._from_file = from_file
        self._texts: dict[int, str | None] = {}

    def add(self, labels: Sequence[int], texts: Sequence[str]) -> tuple[str, ...]:
        """Add the labels of one record, and `texts`, one per label or none.

        Returns:
            The labels as keys of `resolve`, without duplicates.

        Raises:
            ValueError: the labels are unusable.
            DataError: a label has another text than before.
        """
        if not labels:
            raise ValueError("its record has no image/class/label")
        if min(labels) < 0:
            raise ValueError(f"its record has the label {min(labels)}")
        texts = [text for text in texts if text]
        if texts and len(texts) != len(labels):
            raise ValueError(f"its record has {len(labels)} labels and {len(texts)} names of classes")
        for label, text in itertools.zip_longest(labels, texts):
            known = self._texts.setdefault(label, text)
            if known is None:
                self._texts[label] = text
            elif text is not None and text != known:
                raise DataError(
                    f"the label {label} of {self._source} is called {known!r} and {text!r} by image/class/text; "
                    "correct the records, or give the files that agree"
                )
        return tuple(str(label) for label in dict.fromkeys(labels))

    def resolve(self) -> dict[str, str]:
        """Return the name of each label that occurred, in order; raise DataError if a name cannot be resolved."""
        if not self._texts:
            raise DataError(
                f"no record of {self._source} has an image and a label; expected image/encoded and image/class/label "
                "in each"
            )
        labels = sorted(self._texts)
        in_file = self._by_number(labels)
        names = {str(label): in_file.get(label) or self._texts[label] or str(label) for label in labels}
        if len(set(names.values())) < len(names):
            twice = next(name for name in names.values() if list(names.values()).count(name) > 1)
            raise DataError(f"two labels of {self._source} are called {twice!r}; give each class a name of its own")
        return names

    def _by_number(self, labels: Sequence[int]) -> dict[int, str]:
        if self._from_file is None:
            return {}
        names = self._from_file
        if isinstance(names, list):
            names = dict(enumerate(names, start=self._first_label(names, labels)))
        missing = [label for label in labels if not names.get(label)]
        if missing:
            raise DataError(
                f"labels.txt beside {self._source} has no name for the label {missing[0]}; expected one per line, or "
                "lines of NUMBER:NAME: add it"
            )
        return names

    def _first_label(self, names: Sequence[str], labels: Sequence[int]) -> int:
        """Return the label of the first of `names`, 0 or 1."""
        called = {label: text for label, text in self._texts.items() if text is not None}
        for first in (0, 1) if called else ():
            if all(names[label - first : label - first + 1] == [text] for label, text in called.items()):
                return first
        if labels[0] == 0 or labels[-1] > len(names):
            return 0
        if labels[-1] == len(names):
            return 1
        raise DataError(
            f"the labels of {self._source} go from {labels[0]} to {labels[-1]}, and labels.txt has {len(names)} names: "
            "it is unclear whether they start at 0 or 1; write its lines as NUMBER:NAME"
        )
