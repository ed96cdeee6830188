"""`trainer verify`: check an export, a server that has loaded it, or a prepared dataset, every byte of it."""

import pathlib
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from trainer.cli.export import ALL_IMAGES, ParityImagesOption, limit_of, show_parity
from trainer.console.output import JsonOption, print_answer, print_json

if TYPE_CHECKING:
    from serving.verification.server_report import ServerCheck
    from trainer.data.dataset.storage import DatasetPath


def verify(
    target: Annotated[
        str, typer.Argument(help="The directory that trainer export wrote, or a prepared dataset (also a gs:// URL).")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="For an export: a dataset with the same classes, on whose validation split the gate is run again."
        ),
    ] = None,
    parity_images: ParityImagesOption = ALL_IMAGES,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="For an export: the address of a server's REST API, http(s)://HOST:PORT, or with a version or label, "
            "http://HOST:PORT/v1/models/NAME/labels/canary.",
        ),
    ] = None,
    grpc: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The same for its gRPC API; grpcs://HOST:PORT for TLS."),
    ] = None,
    max_p99_ms: Annotated[
        float | None,
        typer.Option(help="With a server: the longest that 99 of 100 requests with one image may take.", min=0),
    ] = None,
    timeout_secs: Annotated[float, typer.Option(help="With a server: how long to wait for one answer.", min=0)] = 60.0,
    json_: JsonOption = False,
) -> None:
    """Verify an export on this machine or on a server, or every byte of a prepared dataset.

    An export: checksums, golden images and, with --data, the whole gate. The golden images are part of the export, with
    the answers of every artifact when it was made.

    A server (--server, --grpc): whether it has loaded this export and is fit for traffic: version, signatures, golden
    images, labels, every batch size, and how long answers take. Any server of TensorFlow Serving's APIs will do.

    A dataset: the SHA-256 of every file, the checksum of every record, and the indexes. A launch does not do this: it
    checks each record when it is read.

    If anything differs, the file is named and the exit status is 1.
    """
    if server is not None or grpc is not None:
        _verify_server(
            pathlib.Path(target), server, grpc, max_p99_ms=max_p99_ms, timeout_secs=timeout_secs, as_json=json_
        )
        return

    from trainer.data.dataset.manifest import is_prepared
    from trainer.data.dataset.storage import RemotePath, parse_path
    from trainer.errors import UsageError

    path = parse_path(target)
    if isinstance(path, RemotePath) or is_prepared(path):
        if data is not None or parity_images != ALL_IMAGES:
            raise UsageError(
                f"{target} is a dataset, and --data and --parity-images are for exports; use: trainer verify {target}"
            )
        _verify_dataset(path, as_json=json_)
    else:
        _verify_export(path, data, parity_images, as_json=json_)


def _verify_dataset(path: "DatasetPath", *, as_json: bool) -> None:
    from trainer.console.progress import task_progress
    from trainer.data.dataset.storage import RemotePath
    from trainer.data.dataset.verify import verify_dataset

    if isinstance(path, RemotePath):
        from trainer.system import tf_runtime

        tf_runtime.configure(use_gpus=False)
    verification = verify_dataset(path, progress=task_progress)
    if as_json:
        print_json(verification.answer())
    else:
        for damage in verification.damages:
            print_answer(f"{damage.file} {damage.problem}")
    verification.raise_on_failure()
    if not as_json:
        found = f": {verification.num_files} files, {verification.num_records:,} records"
        print_answer(Text.assemble(("verified", "green"), found))


def _verify_export(path: pathlib.Path, data: str | None, parity_images: int, *, as_json: bool) -> None:
    from export.files.checksums import Checksums

    Checksums.load(path)  # refuse a wrong directory before TensorFlow starts

    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=False)

    from export.files.signature import Signature
    from export.gate.replay import verify_export
    from export.runtime.samples import open_split
    from trainer.cli.export_tables import golden_table
    from trainer.data.dataset.storage import parse_path

    source = open_split(parse_path(data), "validation", Signature.load(path).class_names) if data else None
    verification = verify_export(path, source=source, max_images=limit_of(parity_images))
    if as_json:
        print_json(verification.answer())
    else:
        print_answer(golden_table(verification.golden, verification.num_golden_images))
        if verification.parity:
            show_parity(verification.parity, as_json)
    verification.raise_on_failure()
    if not as_json:
        found = f": {verification.num_files} files by checksum, {len(verification.golden)} inputs by golden images"
        print_answer(Text.assemble(("verified", "green"), found))


def _verify_server(
    export: pathlib.Path,
    server: str | None,
    grpc: str | None,
    *,
    max_p99_ms: float | None,
    timeout_secs: float,
    as_json: bool,
) -> None:
    from export.files.checksums import Checksums

    Checksums.load(export)  # refuse a wrong directory before TensorFlow starts

    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=False)

    from serving.verification.verify_server import verify_server

    def tell(check: "ServerCheck") -> None:
        if not as_json:
            outcome = ("failed", "red") if check.failure else ("passed", "green")
            print_answer(Text.assemble(outcome, f"  {check.name}: {check.failure or check.seen}"))

    report = verify_server(
        export, server=server, grpc=grpc, max_p99_ms=max_p99_ms, timeout_secs=timeout_secs, on_check=tell
    )
    if as_json:
        print_json(report.answer())
    report.raise_on_failure()
    if not as_json:
        found = f": {report.model} version {report.version} is fit for traffic ({len(report.checks)} checks)"
        print_answer(Text.assemble(("verified", "green"), found))
