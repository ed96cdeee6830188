"""Files that are made to take all memory: each is answered by name, and takes little."""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import zlib

import pytest

from trainer.data.preparation.images.pixel_budget import PixelBudget

measures_memory = pytest.mark.skipif(
    not os.path.exists("/proc/self/clear_refs"), reason="memory is measured by Linux's /proc"
)

# Makes the files and checks each in one process, whose memory is then its own. VmHWM is the largest resident memory
# since `clear_refs` was last written to (proc(5)).
_CHECK_ALL = """
import io, json, re, struct, sys, zlib
import numpy as np
from PIL import Image
from trainer.data.preparation.images.image_check import ReadableImage, check_image


def encode(image, container, **options):
    buffer = io.BytesIO()
    image.save(buffer, container, **options)
    return buffer.getvalue()


def png(side, extra=b"", pixels=None):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\\0" * (side * 3 + 1) * side) if pixels is None else pixels
    ends = chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header) + (chunk(*extra) if extra else b"") + ends


def zlib_bomb(num_mib):
    compressor = zlib.compressobj(9)
    return b"".join([compressor.compress(bytes(2**20)) for _ in range(num_mib)]) + compressor.flush()


def patched(content, marker, skip, data):
    start = content.index(marker) + skip
    return content[:start] + data + content[start + len(data) :]


def gif_parts(side):
    content = encode(Image.fromarray(np.zeros((side, side), np.uint8)), "GIF")
    start = 13 + 3 * 2 ** ((content[10] & 7) + 1)
    while content[start] != 0x2C:
        start += 1
    return content[:start], content[start:-1]


def webp(side):
    chunk = b"VP8X" + struct.pack("<IB3x", 10, 0) + 2 * struct.pack("<I", side - 1)[:3]
    body = b"WEBP" + chunk + encode(SMALL, "WEBP", lossless=True)[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(side, **tags):
    names = {"tile_width": 322, "tile_length": 323, "tile_offsets": 324, "tile_bytes": 325, "compression": 259}
    entries = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 277: 1, 273: 8, 278: side, 279: 64}
    entries.update({names[name]: value for name, value in tags.items()})
    if tags:
        del entries[273], entries[278], entries[279]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4 + 64)


SMALL = Image.fromarray(np.zeros((10, 10, 3), np.uint8))
BOMB = zlib_bomb(400)
screen, frame = gif_parts(1000)
large_frame = frame[:5] + struct.pack("<HH", 65535, 65535) + frame[9:]
tile = {"tile_offsets": 8, "tile_bytes": 64}
jpeg2000, JPEG2000_SIZE = encode(SMALL, "JPEG2000"), struct.pack(">II", 60000, 60000)
FILES = {
    "png of 60,000 x 60,000": png(60_000, pixels=b"x"),
    "jpeg of 65,500 x 65,500": patched(encode(SMALL, "JPEG"), b"\\xff\\xc0", 5, struct.pack(">HH", 65500, 65500)),
    "progressive jpeg, grey without end": patched(
        encode(SMALL, "JPEG", progressive=True), b"\\xff\\xc2", 5, struct.pack(">HH", 13000, 13000)
    ),
    "gif with a large screen": patched(screen + frame + b";", b"GIF8", 6, struct.pack("<HH", 65535, 65535)),
    "gif with a large frame": screen + large_frame + b";",
    "gif with a large second frame": screen + frame + large_frame + b";",
    "gif of 3,000 frames": screen + frame * 3000 + b";",
    "bmp of 100,000 x 100,000": patched(encode(SMALL, "BMP"), b"BM", 18, struct.pack("<ii", 100_000, 100_000)),
    "bmp that ends early": patched(encode(SMALL, "BMP"), b"BM", 18, struct.pack("<ii", 13_000, 13_000)),
    "webp with a large canvas": webp(2**24),
    "tiff of 100,000 x 100,000": tiff(100_000),
    "tiff with a large tile": tiff(10, tile_width=40_000, tile_length=40_000, compression=5, **tile),
    "ppm of 100,000 x 100,000": b"P6 100000 100000 255\\n" + bytes(100),
    "jpeg 2000 of 60,000 x 60,000": patched(
        patched(jpeg2000, b"ihdr", 4, JPEG2000_SIZE), b"\\xff\\x51", 6, JPEG2000_SIZE
    ),
    "png with a colour profile of 400 MB": png(10, extra=(b"iCCP", b"x\\0\\0" + BOMB)),
    "png with a text of 400 MB": png(10, extra=(b"zTXt", b"x\\0\\0" + BOMB)),
    "png with 400 MB more than its pixels": png(10, pixels=BOMB),
}


def resident(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024


check_image(png(10))
check_image(encode(SMALL, "JPEG", quality=33))
check_image(encode(SMALL, "GIF"))
answer = {}
for name, content in FILES.items():
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
    before = resident("VmRSS")
    image = check_image(content)
    found = image.change or "kept" if isinstance(image, ReadableImage) else image.reason
    answer[name] = (len(content), found, resident("VmHWM") - before)
json.dump(answer, sys.stdout)
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[int, str, float]]:
    """Of each file: its bytes, what was found, and MiB of memory that it took."""
    # Without Keras, TensorFlow is imported sooner.
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", _CHECK_ALL]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, tuple[int, str, float]] = json.loads(ended.stdout)
    return found


EXPECTED = {
    "png of 60,000 x 60,000": "too large",
    "jpeg of 65,500 x 65,500": "too large",
    "progressive jpeg, grey without end": "truncated: 519 bytes cannot hold 13000 x 13000 pixels",
    "gif with a large screen": "too large",
    "gif with a large frame": "too large",
    "gif with a large second frame": "first frame of a long GIF",
    "gif of 3,000 frames": "first frame of a long GIF",
    "bmp of 100,000 x 100,000": "too large",
    "bmp that ends early": "truncated",
    "webp with a large canvas": "too large",
    "tiff of 100,000 x 100,000": "too large",
    "tiff with a large tile": "too large: 40000 x 40000 pixels",
    "ppm of 100,000 x 100,000": "too large",
    "jpeg 2000 of 60,000 x 60,000": "too large",
    "png with a colour profile of 400 MB": "corrupt: Decompressed data too large",
    "png with a text of 400 MB": "corrupt: Decompressed data too large",
    "png with 400 MB more than its pixels": "kept",
}


@measures_memory
@pytest.mark.parametrize("name", EXPECTED)
def test_a_hostile_file_is_answered_by_name_and_takes_little_memory(
    answers: dict[str, tuple[int, str, float]], name: str
) -> None:
    num_bytes, found, num_mib = answers[name]
    assert found.startswith(EXPECTED[name])
    assert num_bytes < 2**23
    assert num_mib < 100


@measures_memory
def test_every_hostile_file_has_an_expectation(answers: dict[str, tuple[int, str, float]]) -> None:
    assert set(answers) == set(EXPECTED)


def test_pixels_in_flight_stay_under_the_budget_and_a_large_one_gets_its_turn() -> None:
    budget = PixelBudget(100)
    lock = threading.Lock()
    now, most, done = 0, 0, []

    def decode(num_pixels: int) -> None:
        nonlocal now, most
        with budget.hold(num_pixels):
            with lock:
                now += num_pixels
                most = max(most, now)
            time.sleep(0.001)
            with lock:
                now -= num_pixels
                done.append(num_pixels)

    sizes = [30, 7, 90, 1, 100, 45, 60, 250] * 12  # 250 is more than there is, and goes in alone
    threads = [threading.Thread(target=decode, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=600)
    assert sorted(done) == sorted(sizes)
    assert most == 250
    assert now == 0


def test_a_folder_with_hostile_files_is_prepared_and_names_them(tmp_path: pathlib.Path) -> None:
    import numpy as np
    from PIL import Image

    from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset

    source = tmp_path / "photos"
    for i in range(20):
        path = source / "ab"[i % 2] / f"{i}.jpg"  # whatever they are called, they are PNG
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)).save(path, "PNG")
    header = (source / "a/0.jpg").read_bytes()
    size = b"IHDR" + b"\0\0\xea\x60\0\0\xea\x60" + header[24:29]
    (source / "a/huge.png").write_bytes(header[:12] + size + zlib.crc32(size).to_bytes(4) + header[33:])
    (source / "b/half.gif").write_bytes(header[: len(header) // 2])
    manifest = prepare_dataset(str(source), tmp_path / "out", options=PrepareOptions(max_bad_fraction=0.2))
    assert sum(split.num_examples for split in manifest.splits.values()) == 20
    assert {bad.path: bad.reason.partition(":")[0] for bad in manifest.bad_files} == {
        "a/huge.png": "too large",
        "b/half.gif": "truncated",
    }
