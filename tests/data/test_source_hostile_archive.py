"""Archives made to do harm, and damaged ones: each is answered as promised, in bounded memory, inside the workspace."""

import bz2
import gzip
import io
import lzma
import pathlib
import random
import re
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator

import hypothesis
import hypothesis.strategies as st
import pytest

from trainer.console.task_progress import show_nothing
from trainer.data.sources import Candidate, Source, open_source
from trainer.data.sources.archives.archive_limits import ArchiveLimits
from trainer.data.sources.candidate import MAX_FILE_BYTES
from trainer.errors import DataError

GIB = 2**30


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder with one archive and a workspace, of which the workspace alone may change."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)

    def everything() -> set[pathlib.Path]:
        return {p for p in tmp_path.rglob("*") if inside / "workspace" not in (p, *p.parents)}

    yield inside
    assert everything() <= {tmp_path / "a", inside, inside / "hostile.zip", inside / "hostile.tar"}
    assert not any(p.is_symlink() or not (p.is_file() or p.is_dir()) for p in tmp_path.rglob("*"))


def stage(place: pathlib.Path, content: bytes) -> Source:
    is_tar = not content.startswith(b"PK") and content[-22:-18] != b"PK\5\6"
    path = place / ("hostile.tar" if is_tar else "hostile.zip")
    path.write_bytes(content)
    source = open_source(str(path))
    source.stage(place / "workspace", show_nothing)
    return source


def refused(place: pathlib.Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        stage(place, content)
    assert list((place / "workspace").iterdir()) == []


def read_all(source: Source) -> dict[str, bytes | str]:
    """The content of each candidate, or why it cannot be read."""
    found: dict[str, bytes | str] = {}
    for c in source.candidates():
        try:
            found[c.filename] = source.read(c)
        except OSError as e:
            found[c.filename] = e.strerror
    return found


def tar_with(change: Callable[[tarfile.TarInfo], None] | None = None, mode: str = "w", size: int = 1000) -> bytes:
    """A tar of a/1, x and b/3, where `change` has been at the header of x."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name in ("a/1", "b/2", "b/3"):
            info = tarfile.TarInfo(name)
            info.size = size
            if name == "b/2" and change is not None:
                change(info)
            tar.addfile(info, io.BytesIO(name.encode() * size))
    return buffer.getvalue()


def zip_with(change: Callable[[zipfile.ZipInfo], None] | None = None, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as z:
        for name in ("a/1", "b/2", "b/3"):
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            if name == "b/2" and change is not None:
                change(info)
            z.writestr(info, (name * 1000)[:1000])
    return buffer.getvalue()


def named(name: str) -> Callable[[tarfile.TarInfo | zipfile.ZipInfo], None]:
    def change(info: tarfile.TarInfo | zipfile.ZipInfo) -> None:
        if isinstance(info, tarfile.TarInfo):
            info.name = name
        else:
            info.filename = name

    return change


# Names that lead elsewhere.


@pytest.mark.parametrize("with_one", [tar_with, zip_with, lambda change: tar_with(change, "w:gz")])
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../../escaped/1", "a path that leads upwards"),
        ("b/../../../escaped", "a path that leads upwards"),
        ("b/..", "a path that leads upwards"),
        ("..\\..\\escaped", "a path that leads upwards"),
        ("/escaped/1", "an absolute path"),
        ("C:\\escaped\\1", "an absolute path"),
        ("\\\\host\\share", "an absolute path"),
        ("b/" + "x" * 5000, "more than 4,096 characters"),
    ],
)
def test_a_name_that_leads_out_is_refused(place: pathlib.Path, with_one, name: str, problem: str) -> None:
    refused(place, with_one(named(name)), re.escape(f"names a member {name[:40]!r}"[:-1]) + f".*{problem}")


def test_dots_that_lead_nowhere_are_names(place: pathlib.Path) -> None:
    assert set(read_all(stage(place, zip_with(named(".//b/./2..jpg"))))) == {"a/1", "b/2..jpg", "b/3"}


# Links, devices, sparse files: nobody is followed and nothing is made.


def typed(kind: bytes, target: str = "") -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.size, info.linkname = kind, 0, target

    return change


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize(
    ("kind", "target", "reason"),
    [
        (tarfile.SYMTYPE, "/etc/passwd", "a link in the archive"),
        (tarfile.SYMTYPE, "../a/1", "a link in the archive"),
        (tarfile.LNKTYPE, "a/1", "a link in the archive"),
        (tarfile.LNKTYPE, "../../../secret", "a link in the archive"),
        (tarfile.CHRTYPE, "", "a device or a pipe in the archive"),
        (tarfile.BLKTYPE, "", "a device or a pipe in the archive"),
        (tarfile.FIFOTYPE, "", "a device or a pipe in the archive"),
        (b"Z", "", "not a regular file in the archive"),
    ],
)
def test_special_members_of_a_tar_are_bad_files(
    place: pathlib.Path, mode: str, kind: bytes, target: str, reason: str
) -> None:
    found = read_all(stage(place, tar_with(typed(kind, target), mode)))
    assert found == {"a/1": (b"a/1" * 1000)[:1000], "b/2": reason, "b/3": (b"b/3" * 1000)[:1000]}


def test_a_folder_that_is_a_link_does_not_lead_the_files_below_it(place: pathlib.Path) -> None:
    """link -> /somewhere, then link/file: the classic way out of an unpacker."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("b/link")
        link.type, link.linkname = tarfile.SYMTYPE, str(place.parent)
        tar.addfile(link)
        for name in ("a/1", "b/link/escaped"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    assert read_all(stage(place, buffer.getvalue())) == {
        "b/link": "a link in the archive",
        "a/1": b"abc",
        "b/link/escaped": b"abc",
    }


def test_links_in_a_zip_are_bad_files(place: pathlib.Path) -> None:
    def link(info: zipfile.ZipInfo) -> None:
        info.create_system, info.external_attr = 3, 0o120777 << 16

    assert read_all(stage(place, zip_with(link)))["b/2"] == "a link in the archive"

    def pipe(info: zipfile.ZipInfo) -> None:
        info.create_system, info.external_attr = 3, 0o010777 << 16

    assert read_all(stage(place, zip_with(pipe)))["b/2"] == "not a regular file in the archive"


def sparse_header(name: str, size: int) -> bytes:
    """An old GNU sparse file of `size` bytes, of which none are in the archive."""
    info = tarfile.TarInfo(name)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_a_sparse_file_of_many_terabytes_takes_no_room(place: pathlib.Path) -> None:
    found = read_all(stage(place, sparse_header("b/huge", 2**50) + tar_with()))
    assert found["b/huge"] == "a sparse file in the archive"
    assert len(found) == 4


# Bombs.


def test_a_tar_that_expands_without_bound_is_stopped(place: pathlib.Path) -> None:
    """2 GiB of zeros in 2 MiB, of which no more than 1 GiB is ever written; and nothing of it stays."""

    def members() -> Iterator[tuple[tarfile.TarInfo, io.BytesIO]]:
        for i in range(64):
            info = tarfile.TarInfo(f"{'ab'[i % 2]}/{i}")
            info.size = 2**25
            yield info, io.BytesIO(bytes(2**25))

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for info, content in members():
            tar.addfile(info, content)
    path = place / "hostile.tar"
    path.write_bytes(buffer.getvalue())
    assert len(buffer.getvalue()) < 2**24
    script = r"""
import os, pathlib, re, sys
from trainer.data.sources import open_source
from trainer.console.task_progress import show_nothing
from trainer.errors import DataError
try:
    open_source(sys.argv[1]).stage(pathlib.Path(sys.argv[2]), show_nothing)
except DataError as e:
    print(e)
print(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1])
"""
    command = [sys.executable, "-c", script, str(path), str(place / "workspace")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    message, peak_kb = done.stdout.splitlines()
    assert re.search(r"expands to more than 1,\d{3},\d{3},\d{3} bytes \(at '[ab]/\d+'\), the limit for one of", message)
    assert int(peak_kb) < 120_000
    assert list((place / "workspace").iterdir()) == []


def deflated(content: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(content) + compressor.flush()


def local_header(name: bytes, data: bytes, size: int, crc: int, method: int = 8) -> bytes:
    return struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, method, 0, 0, crc, len(data), size, len(name), 0) + name


def central_header(name: bytes, data_bytes: int, size: int, crc: int, offset: int, method: int = 8) -> bytes:
    fields = (b"PK\1\2", 20, 20, 0, method, 0, 0, crc, data_bytes, size, len(name), 0, 0, 0, 0, 0, offset)
    return struct.pack("<4s6H3L5H2L", *fields) + name


def with_end(body: bytes, central: bytes, count: int) -> bytes:
    return body + central + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(central), len(body), 0)


def test_a_zip_whose_members_share_their_bytes_is_refused(place: pathlib.Path) -> None:
    """Every name points at the same 100 MB of zeros."""
    content = bytes(10**8)
    data = deflated(content)
    crc = zlib.crc32(content)
    body = local_header(b"a/0", data, len(content), crc) + data
    central = b"".join(central_header(b"%c/%d" % (97 + i % 2, i), len(data), len(content), crc, 0) for i in range(9))
    refused(place, with_end(body, central, 9), "overlaps with another member, as in a zip bomb")


def test_a_zip_whose_members_quote_one_another_is_refused(place: pathlib.Path) -> None:
    """The local header of each is the start of the data of the one before it."""
    kernel = deflated(bytes(10**6))
    body, offsets = b"", []
    headers = [local_header(b"a/%d" % i, kernel, 10**6, 0) for i in range(20)]
    for header in headers:
        offsets.append(len(body))
        body += struct.pack("<BHH", 0, len(header), len(header) ^ 0xFFFF) + header if body else header
    central = b"".join(
        central_header(b"a/%d" % i, len(body) + len(kernel) - offset - 33, 10**6, 0, offset)
        for i, offset in enumerate(offsets)
    )
    refused(place, with_end(body + kernel, central, 20), "overlaps with another member")


def test_a_zip_that_declares_too_much_is_refused_without_expanding_it(place: pathlib.Path) -> None:
    sizes = [MAX_FILE_BYTES] * 3
    central, body = b"", b""
    for i, size in enumerate(sizes):
        central += central_header(b"a/%d" % i, 10, size, 0, len(body))
        body += local_header(b"a/%d" % i, b"x" * 10, size, 0) + b"x" * 10
    refused(place, with_end(body, central, 3), r"expands to more than 1,073,741,824 bytes \(at 'a/2'\)")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_one_member_that_is_larger_than_an_image_can_be_is_refused(place: pathlib.Path, kind: str) -> None:
    size = MAX_FILE_BYTES + 1
    if kind == "tar":
        info = tarfile.TarInfo("a/huge")
        info.size = size
        content = info.tobuf() + bytes(1024)
    else:
        body = local_header(b"a/huge", b"x", size, 0)
        content = with_end(body + b"x", central_header(b"a/huge", 1, size, 0, 0), 1)
    refused(place, content, "'a/huge' in the archive .* is 536,870,913 bytes large; the limit is 536,870,912")


@pytest.mark.parametrize("declared", [10, 10**6])
def test_a_member_that_expands_beyond_its_declared_size_is_stopped(place: pathlib.Path, declared: int) -> None:
    """300 MB of zeros that say they are little."""
    content = bytes(3 * 10**8)
    data = deflated(content)
    body, good = local_header(b"a/lie", data, declared, 0) + data, deflated(b"good")
    central = central_header(b"a/lie", len(data), declared, zlib.crc32(content), 0)
    central += central_header(b"b/1", len(good), 4, zlib.crc32(b"good"), len(body))
    del content
    source = stage(place, with_end(body + local_header(b"b/1", good, 4, 0) + good, central, 2))
    lie, honest = source.candidates()
    tracemalloc.start()
    with pytest.raises(DataError, match=f"'a/lie' .* expands to more than its declared {declared:,} bytes"):
        source.read(lie)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert source.read(honest) == b"good"


def test_an_archive_inside_an_archive_has_no_allowance_of_its_own(place: pathlib.Path) -> None:
    """Each layer alone expands within its bound."""
    limits = ArchiveLimits.of_size("outer", 10**8)
    assert limits.max_total_bytes == 10**10
    limits.add_bytes(9 * 10**9, "x")
    assert limits.for_inner("inner").max_total_bytes == 10**10
    limits.for_inner("inner").add_bytes(10**10, "x")
    with pytest.raises(DataError, match="the archive inner expands to more than 10,000,000,000 bytes"):
        limits.for_inner("inner").add_bytes(10**10 + 1, "x")


def test_too_many_members_are_refused() -> None:
    limits = ArchiveLimits("many.zip", GIB, max_members=3)
    for _ in range(3):
        limits.add_member()
    with pytest.raises(DataError, match=r"many\.zip has more than 3 members"):
        limits.add_member()


def test_a_header_of_a_gigabyte_is_not_read_into_memory(place: pathlib.Path) -> None:
    """A pax header may declare any size, and gzip makes it small."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 2**29
    content = gzip.compress(info.tobuf() + bytes(2**29), 1)
    tracemalloc.start()
    refused(place, content, "has a header of more than 1,048,576 bytes")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_without_end_are_refused(place: pathlib.Path, kind: bytes) -> None:
    """Each says that the next belongs to it."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 9
    one = info.tobuf() + b"9 a=bcde\n".ljust(512, b"\0")
    refused(place, one * 5000, "is not a tar, or is damaged|has a header of more than")


def test_an_xz_that_asks_for_gigabytes_of_memory_is_refused(place: pathlib.Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**29}]
    refused(place, lzma.compress(tar_with(), filters=filters), r"hostile\.tar is damaged.*[Mm]emory usage limit")


# Encrypted, unknown, damaged.


def test_an_encrypted_zip_says_so(place: pathlib.Path) -> None:
    content = bytearray(zip_with())
    at = content.find(b"PK\1\2", content.find(b"PK\1\2") + 1)
    content[at + 8] |= 1
    refused(place, bytes(content), "'b/2' in the archive .* is encrypted; unpack it with its password")


def test_a_method_of_compression_that_is_not_known_is_named(place: pathlib.Path) -> None:
    refused(place, zip_with(method=zipfile.ZIP_LZMA), r"compressed by method 14; expected 0 \(stored\) or 8")


@pytest.mark.parametrize(
    "content",
    [tar_with(), tar_with(mode="w:gz"), tar_with(mode="w:bz2"), tar_with(mode="w:xz"), zip_with()],
    ids=["tar", "gz", "bz2", "xz", "zip"],
)
def test_an_archive_that_is_cut_off_anywhere_is_refused(place: pathlib.Path, content: bytes) -> None:
    generator = random.Random(0)
    # A tar may end with more blocks of zeros than it needs.
    whole = len(content.rstrip(b"\0")) // 512 * 512 + 512 if content[257:262] == b"ustar" else len(content)
    cuts = {512 * i for i in range(1, whole // 512)} if content[257:262] == b"ustar" else set()
    for cut in sorted(cuts | {whole - 1} | {generator.randrange(600, whole) for _ in range(20) if whole > 600}):
        path = place / "hostile.tar"
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"damaged|cut off|neither a zip nor a tar"):
            stage(place, content[:cut])


def test_a_damaged_header_in_a_tar_is_not_taken_for_its_end(place: pathlib.Path) -> None:
    content = bytearray(tar_with())
    at = bytes(content).find(b"b/2")
    content[at] ^= 1
    refused(place, bytes(content), "is damaged or cut off: no end-of-archive marker follows its 1 members")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_flipped_bit_in_a_compressed_tar_is_found(place: pathlib.Path, mode: str) -> None:
    content = tar_with(mode=mode, size=50_000)
    for at in (len(content) // 2, len(content) - 6):
        refused(place, content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :], "damaged")


def test_a_flipped_bit_in_a_zip_makes_one_bad_file(place: pathlib.Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        content = zip_with(method=method)
        at = content.find(b"b/2") + 3 + 5
        found = read_all(stage(place, content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]))
        assert found["b/2"].startswith("damaged in the archive")
        assert [found[name] for name in ("a/1", "b/3")] == [(name * 1000)[:1000].encode() for name in ("a/1", "b/3")]


def test_a_zip_with_another_count_of_members_than_it_says_is_refused(place: pathlib.Path) -> None:
    content = zip_with()
    end = content.rfind(b"PK\5\6")
    changed = content[: end + 10] + struct.pack("<H", 2) + content[end + 12 :]
    refused(place, changed, "lists 3 members but declares 2")


def test_the_streams_of_a_compressed_file_are_read_one_after_the_other(place: pathlib.Path) -> None:
    """As parallel compressors write them."""
    content = tar_with()
    for compress in (gzip.compress, bz2.compress, lzma.compress):
        parts = [compress(content[start : start + 700]) for start in range(0, len(content), 700)]
        assert len(read_all(stage(place, b"".join(parts)))) == 3


TARS = [tar_with(), tar_with(mode="w:gz"), tar_with(named("b/" + "x" * 300)), sparse_header("b/s", 9) + tar_with()]
ZIPS = [zip_with(), zip_with(method=zipfile.ZIP_STORED), zip_with(named("b/é"))]


@hypothesis.settings(
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], deadline=None, max_examples=300
)
@hypothesis.given(
    content=st.sampled_from([*TARS, *ZIPS]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    cut=st.floats(0, 1),
)
def test_any_damage_is_an_error_or_a_bad_file(
    tmp_path: pathlib.Path, content: bytes, changes: list[tuple[float, int]], cut: float
) -> None:
    damaged = bytearray(content)
    for where, value in changes:
        damaged[int(where * len(damaged))] = value
    if cut < 0.3:
        del damaged[int(cut / 0.3 * len(damaged)) :]
    path = tmp_path / "damaged"
    path.write_bytes(damaged)
    try:
        source = open_source(str(path))
        source.stage(tmp_path / "workspace", show_nothing)
        candidates = list(source.candidates())
        assert all(isinstance(c, Candidate) and c.class_names for c in candidates)
        for c in candidates:
            try:
                assert len(source.read(c)) <= 10**6
            except OSError as e:
                assert e.strerror
    except DataError as e:
        assert str(e)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_full_disk_is_said_and_leaves_nothing_half_done(place: pathlib.Path, kind: str) -> None:
    """Of the spool of a tar, and of the index of a zip."""
    path = place / f"hostile.{kind}"
    if kind == "tar":
        path.write_bytes(tar_with(mode="w:gz", size=200_000))
    else:
        with zipfile.ZipFile(path, "w") as z:
            for i in range(5000):
                z.writestr(f"{'ab'[i % 2]}/{i:050}", b"")
    script = """
import pathlib, resource, signal, sys
from trainer.data.sources import open_source
from trainer.console.task_progress import show_nothing
from trainer.errors import TrainerError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    open_source(sys.argv[1]).stage(pathlib.Path(sys.argv[2]), show_nothing)
except TrainerError as e:
    print(type(e).__name__, e)
"""
    command = [sys.executable, "-c", script, str(path), str(place / "workspace")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.match(rf"TrainerError .*hostile\.{kind} cannot be staged in .*: (File too large|.*disk)", done.stdout)
    assert list((place / "workspace").iterdir()) == []
