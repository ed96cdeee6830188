"""The programs in an export's README run as they stand there, and answer what the model answers."""

import importlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime
import PIL.Image
import pytest
from digits_classifier import CLASS_NAMES, GEOMETRY

from export.documents import model_card, readme
from export.files.parity import ParityReport
from export.files.signature import Signature
from export.gate.golden import Golden
from export.gate.odd_files import make_odd_files
from export.runtime.client_images import load_client_pixels
from trainer.data.decode.image_file import UnreadableImage, open_picture

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A copy of the export with the programs of its README as files, and a golden image of its own size."""
    directory = pathlib.Path(shutil.copytree(exported.directory, tmp_path_factory.mktemp("readme") / "digits"))
    for name, text in readme.programs_of((directory / readme.FILE_NAME).read_text()).items():
        (directory / name).write_text(text)
    content = Golden.load(directory).batch.encoded[0]
    (directory / "image.png").write_bytes(content)
    # The same picture in files that TensorFlow does not read, and reads turned.
    with PIL.Image.open(io.BytesIO(content)) as image:
        image.save(directory / "image.tiff")
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        image.transpose(PIL.Image.Transpose.ROTATE_90).save(directory / "turned.png", exif=exif)
    return directory


@pytest.fixture(scope="module")
def expected(place: pathlib.Path) -> tuple[str, float]:
    probabilities = Golden.load(place).probabilities[0]
    return CLASS_NAMES[int(probabilities.argmax())], float(probabilities.max())


def run(place: pathlib.Path, *command: str) -> str:
    ended = subprocess.run(
        command,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def agrees(output: str, expected: tuple[str, float], tolerance: float) -> bool:
    label, probability = output.split()
    return label == expected[0] and abs(float(probability) - expected[1]) <= tolerance


def test_there_is_a_program_for_every_runtime(place: pathlib.Path) -> None:
    names = set(readme.programs_of((place / readme.FILE_NAME).read_text()))
    assert names >= {"saved_model.py", "predict.sh", "pixels.py", "run_tflite.py", "run_onnx.py", "run_onnx.cc"}
    text = (place / readme.FILE_NAME).read_text()
    for file in re.findall(r'"((?:saved_model|tflite|onnx)/[^"]+)"', text):
        assert (place / file).exists(), file


def test_the_saved_model_answers(place: pathlib.Path, expected: tuple[str, float]) -> None:
    assert agrees(run(place, sys.executable, "saved_model.py", "image.tiff"), expected, 1e-4)


def test_every_tflite_file_answers(place: pathlib.Path, expected: tuple[str, float]) -> None:
    # Pillow and TensorFlow resize alike but for rounding, which a probability may feel.
    assert agrees(run(place, sys.executable, "run_tflite.py", "image.png"), expected, 0.02)
    files = [a.path for a in ParityReport.load(place).artifacts() if a.path.endswith(".tflite")]
    assert len(files) >= 4
    for file in files:
        assert agrees(run(place, sys.executable, "run_tflite.py", "image.png", file), expected, 0.1), file


def test_the_pixels_of_the_readme_are_those_that_the_gate_has_compared(place: pathlib.Path) -> None:
    run(place, sys.executable, "pixels.py", "image.png", "image.raw")
    (expected,) = load_client_pixels([(place / "image.png").read_bytes()], GEOMETRY)
    np.testing.assert_array_equal(np.fromfile(place / "image.raw", np.uint8), expected.reshape(-1))


def test_the_readme_sees_in_every_odd_file_what_training_sees(
    place: pathlib.Path, validation: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(place)
    files = make_odd_files(validation, GEOMETRY)
    load_picture = importlib.import_module("picture").load
    load_pixels = importlib.import_module("pixels").load
    for kind, content in zip(files.kinds, files.batch.encoded, strict=True):
        file = tmp_path / "odd"
        file.write_bytes(content)
        with open_picture(content) as seen:
            assert not isinstance(seen, UnreadableImage), kind
            np.testing.assert_array_equal(np.asarray(load_picture(file)), seen.pixels, err_msg=kind)
        np.testing.assert_array_equal(load_pixels(file), load_client_pixels([content], GEOMETRY), err_msg=kind)


def test_onnx_answers(place: pathlib.Path, expected: tuple[str, float]) -> None:
    assert agrees(run(place, sys.executable, "run_onnx.py", "image.png"), expected, 0.02)


def test_onnx_answers_in_cpp(place: pathlib.Path, expected: tuple[str, float]) -> None:
    """The Python package brings the library and not its headers: ONNXRUNTIME_INCLUDE says where these are."""
    headers = os.environ.get("ONNXRUNTIME_INCLUDE", "/usr/include/onnxruntime")
    compiler = shutil.which("c++")
    if compiler is None or not (pathlib.Path(headers) / "onnxruntime_cxx_api.h").is_file():
        pytest.skip("no C++ compiler, or no headers of ONNX Runtime: set ONNXRUNTIME_INCLUDE")
    library = next((pathlib.Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (place / name).symlink_to(library)
    linked = ["-L.", "-lonnxruntime", "-Wl,-rpath,."]
    run(place, compiler, "-std=c++17", f"-I{headers}", "run_onnx.cc", "-o", "run_onnx", *linked)
    run(place, sys.executable, "pixels.py", "image.png", "image.raw")
    assert agrees(run(place, "./run_onnx", "image.raw"), expected, 0.02)


@pytest.fixture(scope="module")
def server(place: pathlib.Path) -> Iterator[str]:
    import serving

    with subprocess.Popen(
        [sys.executable, "-m", "trainer", "serve", str(place), "--port", "0", "--grpc-port", "0"],
        cwd=pathlib.Path(serving.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
    ) as process:
        said = ""
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if found := re.search(r"http://[\w.]+:\d+", said):
                yield found[0]
                break
        else:
            pytest.fail(f"the server ended: {said}")
        process.terminate()
        process.communicate(timeout=600)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_curl_is_answered_by_a_server(place: pathlib.Path, server: str, expected: tuple[str, float]) -> None:
    import json

    (answer,) = json.loads(run(place, "sh", "predict.sh", "image.tiff", server))["predictions"]
    assert (answer["status"], answer["class_id"], answer["label"]) == ("not_an_image", -1, "")
    (answer,) = json.loads(run(place, "sh", "predict.sh", "turned.png", server))["predictions"]
    assert answer["label"] == expected[0]
    np.testing.assert_allclose(max(answer["probabilities"]), expected[1], atol=1e-4)


def test_what_was_not_exported_is_not_explained(exported: Any) -> None:
    report = exported.report.model_copy(
        update={"comparisons": [c for c in exported.report.comparisons if c.format == "onnx"]}
    )
    programs = readme.programs_of(readme.render(Signature.load(exported.directory), report))
    assert set(programs) == {"picture.py", "pixels.py", "run_onnx.py", "run_onnx.cc"}


def test_the_card_points_to_the_readme(exported: Any) -> None:
    assert "`README.md`" in (exported.directory / model_card.FILE_NAME).read_text()
