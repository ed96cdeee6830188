"""Refuse a version whose files are not those that were exported, or that does not answer as it did then.

Files first, before TensorFlow reads them; then, in memory, warm-up requests and golden answers. A model that brings no
proof, such as one of another program, is loaded as it is.
"""

import pathlib
from collections.abc import Callable
from typing import Final

import numpy as np

from export.files.checksums import FILE_NAME as EXPORT_CHECKSUMS_FILE
from export.files.checksums import Checksums
from export.files.signature import (
    IMAGE_BYTES,
    IMAGES,
    LABEL,
    PROBABILITIES,
    SIGNATURE_IMAGE_BYTES,
    SIGNATURE_IMAGES,
)
from export.files.version_proof import (
    CHECKSUMS_FILE,
    GOLDEN_FILE,
    WARMUP_FILE,
    GoldenAnswer,
    VersionChecksums,
    VersionGolden,
    verify_files,
)
from export.runtime.client_images import predict_files
from export.runtime.runtimes import Arrays
from serving.models.servable import Runtime, Serving
from serving.models.warm_up import warm_up
from serving.protocol.status import Code, RequestError
from trainer.errors import ArtifactError, ParityError

_INPUT_OF: Final = {SIGNATURE_IMAGES: IMAGES, SIGNATURE_IMAGE_BYTES: IMAGE_BYTES}


def checked(serving: Serving, *, tell: Callable[[str], None]) -> Serving:
    """Return `serving` with every check before a version is available; `tell` gets a note for one without a proof."""

    def load(path: pathlib.Path) -> Runtime:
        check_files(path)
        return serving.load(path)

    def check(path: pathlib.Path, runtime: Runtime) -> None:
        serving.check(path, runtime)
        num_requests = warm_up(path, runtime)
        if (path / GOLDEN_FILE).is_file():
            check_answers(path, runtime, num_warmup_requests=num_requests)
        else:
            tell(f"{path} brings no golden answers (they come with trainer export), so its answers are not checked")

    return serving._replace(load=load, check=check)


def check_files(path: pathlib.Path) -> None:
    """Compare the files of a version with its checksums, or else with those of the export that it lies in, if any.

    Raises:
        RequestError: (DATA_LOSS) a file is missing or changed.
    """
    try:
        if (path / CHECKSUMS_FILE).is_file():
            checksums = VersionChecksums.load(path)
            checksums.verify(path)
            _check_all_are_listed(path, checksums)
        _verify_by_export(path.resolve())
    except (ArtifactError, ParityError) as e:
        raise RequestError(Code.DATA_LOSS, str(e)) from None


def _check_all_are_listed(path: pathlib.Path, checksums: VersionChecksums) -> None:
    # An export writes all three; a version that lost one lost a part of its proof.
    for name in (WARMUP_FILE, GOLDEN_FILE):
        if str(name) not in checksums.files:
            raise ParityError(f"{CHECKSUMS_FILE} of {path} does not list {name}; copy the version again")


def _verify_by_export(path: pathlib.Path) -> None:
    """Verify a version in its place: EXPORT/saved_model/<name>/<version>."""
    export_dir = path.parents[2] if len(path.parents) > 2 else path
    if not (export_dir / EXPORT_CHECKSUMS_FILE).is_file():
        return
    prefix = path.relative_to(export_dir).as_posix() + "/"
    checksums = Checksums.load(export_dir)
    files = {name.removeprefix(prefix): of for name, of in checksums.files.items() if name.startswith(prefix)}
    verify_files(path, files, said_by=f"{EXPORT_CHECKSUMS_FILE} of the export")


def check_answers(path: pathlib.Path, runtime: Runtime, *, num_warmup_requests: int) -> None:
    """Compare the answers of a version, and the number of its warm-up requests, with its golden file.

    Raises:
        RequestError: (FAILED_PRECONDITION) they differ.
    """
    try:
        golden = VersionGolden.load(path)
    except ArtifactError as e:
        raise RequestError(Code.DATA_LOSS, str(e)) from None
    if num_warmup_requests != golden.num_warmup_requests:
        raise _refused(
            f"{path} has {num_warmup_requests} warm-up requests where {GOLDEN_FILE} says {golden.num_warmup_requests}"
        )
    for name, expected in golden.answers.items():
        if name not in _INPUT_OF or name not in runtime.signatures:
            raise _refused(f"{path} has no signature {name}, for which it brings golden answers")
        fault = _find_fault(expected, _answer(runtime, name, golden))
        if fault is not None:
            raise _refused(f"signature {name} of {path} does not answer as it did when it was exported: {fault}")


def _refused(message: str) -> RequestError:
    return RequestError(Code.FAILED_PRECONDITION, f"{message}; copy the version again, or export the model again")


def _answer(runtime: Runtime, name: str, golden: VersionGolden) -> Arrays:
    def predict(encoded: list[bytes]) -> Arrays:
        return runtime.run(runtime.signatures[name], {IMAGE_BYTES: np.array(encoded, object)})

    if name == SIGNATURE_IMAGE_BYTES:
        return predict_files(predict, golden.encoded)
    return runtime.run(runtime.signatures[name], {IMAGES: golden.images.astype(np.float32)})


def _find_fault(expected: GoldenAnswer, outputs: Arrays) -> str | None:
    answer, allowed = outputs[PROBABILITIES], expected.max_difference
    if answer.shape != expected.probabilities.shape:
        return f"probabilities of shape {list(answer.shape)} where {list(expected.probabilities.shape)} are expected"
    difference = np.abs(answer.astype(np.float64) - expected.probabilities).max(initial=0.0)
    if not difference <= allowed:  # also for NaN
        return f"a probability of a golden image differs by {difference:.2g}, where {allowed:.2g} is allowed"
    if expected.labels is None:
        return None
    labels = [bytes(label) for label in outputs[LABEL]]
    for i in np.flatnonzero(_is_clear(expected)):
        if labels[i] != bytes(expected.labels[i]):
            return (
                f"golden image {i} is {labels[i].decode(errors='replace')!r} where "
                f"{bytes(expected.labels[i]).decode(errors='replace')!r} is expected"
            )
    return None


def _is_clear(expected: GoldenAnswer) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return for which images no other class can be the best within the allowed difference."""
    top = np.sort(expected.probabilities, axis=-1)
    if top.shape[-1] < 2:
        return np.ones(len(top), np.bool_)
    clear: np.ndarray[tuple[int], np.dtype[np.bool_]] = top[:, -1] - top[:, -2] > 2 * expected.max_difference
    return clear
