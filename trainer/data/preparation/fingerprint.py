"""What tells whether a source is still the one that was seen before, without reading an image."""

import hashlib
import os
import pathlib
import stat

from trainer.data.sources import Candidate, FileSource, Source

_MODULUS = 2**128


class SourceFingerprint:
    """A digest of the candidates of a source, added one after the other.

    It has the names, labels, splits, weights and groups, and, where the source is files, their sizes and times of
    modification. The order does not matter (a folder is listed in any): it is the sum of a digest of each.
    """

    def __init__(self, source: Source, text: str) -> None:
        """`text` is what the user calls `source`."""
        self._source = source
        self._sum = 0
        self._num_candidates = 0
        self._beginning = f"{source.class_names!r}\n{_status_of_files(text, source)}"

    def add(self, candidate: Candidate) -> None:
        """Every candidate once."""
        seen = ""
        if isinstance(self._source, FileSource):
            try:
                status = os.stat(self._source.path_of(candidate))
                seen = f"{status.st_size} {status.st_mtime_ns}"
            except (OSError, ValueError):  # `prepare` records why
                seen = "missing"
        line = repr((
            candidate.filename,
            candidate.class_names,
            candidate.split,
            candidate.weight,
            candidate.group,
            candidate.locator,
            seen,
        ))  # fmt: skip
        digest = hashlib.blake2b(line.encode("utf-8", "backslashreplace"), digest_size=16).digest()
        self._sum = (self._sum + int.from_bytes(digest)) % _MODULUS
        self._num_candidates += 1

    def hexdigest(self) -> str:
        text = f"{self._beginning}\n{self._num_candidates}\n{self._sum}"
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def fingerprint_of(source: Source, text: str) -> str:
    """The fingerprint of all of `source`, which the user calls `text`."""
    fingerprint = SourceFingerprint(source, text)
    for candidate in source.candidates():
        fingerprint.add(candidate)
    return fingerprint.hexdigest()


def _status_of_files(text: str, source: Source) -> str:
    """Sizes and times of the file `text`, or of the files in the folder, where the candidates are not files."""
    path = pathlib.Path(text)
    try:
        if isinstance(source, FileSource) or not path.exists():
            return ""
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return "\n".join(
            f"{file.name} {status.st_size} {status.st_mtime_ns}"
            for file in files
            if stat.S_ISREG((status := file.stat()).st_mode)
        )
    except (OSError, ValueError):  # such as a name that is too long for a path: it is none
        return ""
