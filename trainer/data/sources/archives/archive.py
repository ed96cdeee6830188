"""A zip or tar of folders of images, local or at a URL; see `FolderSource` for the folders.

A single folder that contains all others is skipped, and so is an archive that contains only another archive.
"""

import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from trainer.console.task_progress import ShowProgress
from trainer.data.sources.archives.archive_layout import ArchiveLayout, find_layout
from trainer.data.sources.archives.archive_limits import ARCHIVE_SUFFIXES, ArchiveLimits, is_archive_name
from trainer.data.sources.archives.download import download
from trainer.data.sources.archives.forward_stream import is_tar
from trainer.data.sources.archives.staging import (
    Entry,
    StagedIndex,
    find_index,
    identity_of,
    iterate_range,
    new_file,
    new_index,
    sha256_of,
    staging_into,
)
from trainer.data.sources.archives.tar_archive import index_tar
from trainer.data.sources.archives.zip_archive import index_zip, iterate_zip_member
from trainer.data.sources.candidate import Candidate, Source
from trainer.data.sources.catalogue import CATALOGUE, Published
from trainer.data.sources.left_behind import PassedOver, kind_of_path
from trainer.errors import DataError
from trainer.system.names import normalize_class_name

URL_SCHEMES = ("http://", "https://")


class _Staged(NamedTuple):
    """An indexed archive. `data` is the file that the locators refer to: the archive itself, or a spool."""

    path: pathlib.Path
    data: pathlib.Path
    entries: StagedIndex
    is_zip: bool

    def blocks(self, locator: str, name: str) -> Iterator[bytes]:
        return iterate_zip_member(self.data, locator, name) if self.is_zip else iterate_range(self.data, locator)


class ArchiveSource(Source):
    """An archive in which the class of a member is the first folder of its path below the root of the class folders.

    Call `stage` first. A link, a device or a damaged member is an unreadable file; a name that leads out of the
    archive, or unbounded expansion, is an error of the whole archive.
    """

    def __init__(
        self,
        location: str,
        *,
        sha256: str | None = None,
        published: Published | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        """Open an archive, without reading it yet.

        Args:
            location: a path or a URL.
            sha256: its checksum; also identifies a local copy of an archive in the catalogue.
            published: the entry of the catalogue.
            exclude: folders that are neither classes nor splits.

        Raises:
            DataError: the file is missing or not an archive, or a URL has no checksum.
        """
        self._location = location
        self._is_remote = location.lower().startswith(URL_SCHEMES)
        self._published = published or next((p for p in CATALOGUE.values() if p.sha256 == sha256), None)
        self._sha256 = sha256
        file_name = location.split("?")[0].rstrip("/").rpartition("/")[2]
        self.name = published.name if published else _without_suffix(file_name)
        if self._is_remote:
            if sha256 is None:
                raise DataError(
                    f"the archive {location} comes without a checksum; give its publisher's with "
                    "--sha256, or download it, inspect it and give the file"
                )
        elif not is_archive(pathlib.Path(location)):
            raise DataError(
                f"{location} is neither a zip nor a tar (gzip, bzip2 or xz), or is damaged; give an archive of "
                "folders of images, or the folder itself"
            )
        self._staged: _Staged | None = None
        self._layout: ArchiveLayout | None = None
        self._exclude = frozenset(map(normalize_class_name, exclude))

    @property
    def class_names(self) -> list[str]:
        """The classes, including folders without files, so that such mistakes are noticed."""
        assert self._layout is not None, "stage comes first"
        return list(self._layout.class_names)

    def stage(self, workspace: pathlib.Path, progress: ShowProgress) -> None:
        """Download, verify and index the archive; spool the contents of a compressed tar in the workspace."""
        with staging_into(workspace, self._location):
            path = self._verified_file(workspace, progress)
            limits = ArchiveLimits.of_size(self._location, path.stat().st_size)
            staged = _stage(path, workspace / "archive", limits, progress)
            layout = self._layout_of(staged)
            inner = self._find_inner(staged, layout)
            if inner is not None:
                inner_path = workspace / f"inner{pathlib.PurePath(inner.name).suffix}"
                if find_index(workspace / "inner.index", identity_of(path)) is None or not inner_path.exists():
                    _copy_member(staged, inner, inner_path)
                limits = limits.for_inner(f"{inner.name} in {self._location}")
                staged = _stage(inner_path, workspace / "inner", limits, progress, of=path)
                layout = self._layout_of(staged)
        self._staged = staged
        self._layout = layout
        if not layout.class_names:
            num_files = sum(not name.endswith("/") for name in staged.entries.names())
            raise DataError(
                f"the archive {self._location} holds {num_files:,} files and no folders of them; expected one folder "
                "of images per class, as in cat/1.jpg"
            )

    def candidates(self) -> Iterator[Candidate]:
        assert self._staged is not None and self._layout is not None, "stage comes first"
        class_names = frozenset(self._layout.class_names)
        self.passed_over = PassedOver()
        for entry in self._staged.entries.entries():
            if entry.name.endswith("/"):
                continue
            kind = kind_of_path(entry.name)
            location = self._layout.classify(entry.name)
            if kind is not None:
                self.passed_over.num_ignored[kind] += 1
            elif location is None:
                self.passed_over.add_beside(entry.name)
            elif location[1] in class_names:
                split, class_name = location
                yield Candidate(filename=entry.name, class_names=(class_name,), split=split, locator=entry.locator)

    def read(self, candidate: Candidate) -> bytes:
        assert self._staged is not None, "stage comes first"
        return b"".join(self._staged.blocks(candidate.locator, candidate.filename))

    def _layout_of(self, staged: _Staged) -> ArchiveLayout:
        no_classes = self._published.exclude if self._published else frozenset()
        return find_layout(self._location, staged.entries.names, no_classes, self._exclude)

    def _verified_file(self, workspace: pathlib.Path, progress: ShowProgress) -> pathlib.Path:
        if self._is_remote:
            assert self._sha256 is not None
            path = download(self._location, self._sha256, workspace, progress, published=self._published)
            if not is_archive(path):
                raise DataError(f"the file at {self._location} is neither a zip nor a tar; give the URL of one")
            return path
        path = pathlib.Path(self._location)
        if self._sha256 is not None:
            found = sha256_of(path, progress)
            if found != self._sha256:
                raise DataError(
                    f"{path} has the SHA-256 {found} where --sha256 says {self._sha256}; copy it again, or correct "
                    "--sha256"
                )
        return path

    def _find_inner(self, staged: _Staged, layout: ArchiveLayout) -> Entry | None:
        """Return the inner archive to use if `staged` has one and fewer than two class folders."""
        wanted = self._published.inner if self._published else None
        if wanted is None and len(layout.class_names) > 1:
            return None
        found = [
            entry
            for entry in staged.entries.entries()
            if (entry.name == wanted if wanted else is_archive_name(entry.name)) and kind_of_path(entry.name) is None
        ]
        if wanted is not None and not found:
            raise DataError(f"the archive {self._location} holds no {wanted}; copy it again")
        if len(found) > 1:
            raise DataError(
                f"the archive {self._location} holds {len(found)} archives, such as {found[0].name}, and no folders of "
                "images; unpack the one with the images, and give that"
            )
        return found[0] if found else None


def is_archive(path: pathlib.Path) -> bool:
    """Return whether `path` is a file that looks like a tar or a zip."""
    return path.is_file() and (is_tar(path) or zipfile.is_zipfile(path) or path.name.lower().endswith(".zip"))


def _stage(
    path: pathlib.Path,
    stem: pathlib.Path,
    limits: ArchiveLimits,
    progress: ShowProgress,
    *,
    of: pathlib.Path | None = None,
) -> _Staged:
    """Index `path` as `<stem>.index`, unless done before. `of` is the archive that contains it, if any."""
    index_path, spool_path = stem.with_suffix(".index"), stem.with_suffix(".spool")
    identity = identity_of(of or path)
    is_zip = not is_tar(path)
    index = find_index(index_path, identity)
    if index is None or (index.fact("is_spooled") and not spool_path.exists()):
        with progress("indexing", path.stat().st_size) as shown, new_index(index_path, identity) as writer:
            if is_zip:
                index_zip(path, writer, limits, shown)
            else:
                with new_file(spool_path) as temporary, temporary.open("wb") as spool:
                    writer.set_fact("is_spooled", index_tar(path, spool, writer, limits, shown))
        index = StagedIndex(index_path)
    return _Staged(path, spool_path if index.fact("is_spooled") else path, index, is_zip)


def _copy_member(staged: _Staged, entry: Entry, target: pathlib.Path) -> None:
    """Write one member to `target`; raise DataError if it is damaged."""
    try:
        with new_file(target) as temporary, temporary.open("wb") as f:
            for block in staged.blocks(entry.locator, entry.name):
                f.write(block)
    except OSError as e:
        raise DataError(f"{entry.name} in the archive {staged.path} cannot be read: {e.strerror or e}") from None


def _without_suffix(file_name: str) -> str:
    for suffix in sorted(ARCHIVE_SUFFIXES, key=len, reverse=True):
        if file_name.lower().endswith(suffix):
            return file_name[: -len(suffix)]
    return file_name
