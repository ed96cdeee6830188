"""Fingerprint a source, to notice changes without reading images."""

import hashlib
import os
import pathlib
import stat

from trainer.data.sources import Candidate, FileSource, Source

_MODULUS = 2**128


class SourceFingerprint:
    """A digest of the candidates of a source, added one by one.

    It covers names, labels, splits, weights and groups, and, for sources of files, their sizes and modification times.
    It is the sum of a digest of each, so the order does not matter (folders are listed in any order).
    """

    def __init__(self, source: Source, text: str) -> None:
        """Start a fingerprint of `source`, which the user gave as `text`."""
        self._source = source
        self._sum = 0
        self._num_candidates = 0
        self._beginning = f"{source.class_names!r}\n{_status_of_files(text, source)}"

    def add(self, candidate: Candidate) -> None:
        """Add a candidate; call it once for each."""
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
    """Return the fingerprint of `source`, which the user gave as `text`."""
    fingerprint = SourceFingerprint(source, text)
    for candidate in source.candidates():
        fingerprint.add(candidate)
    return fingerprint.hexdigest()


def _status_of_files(text: str, source: Source) -> str:
    """Return sizes and times of the file `text`, or of the files in the folder; "" if the candidates are files."""
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
    except (OSError, ValueError):  # for example a name too long for a path
        return ""
