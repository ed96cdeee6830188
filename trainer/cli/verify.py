"""`trainer verify`: check an export or a prepared dataset, every byte of it."""

import pathlib
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from trainer.cli.export import ALL_IMAGES, ParityImagesOption, limit_of, show_parity
from trainer.console.output import JsonOption, print_answer, print_json

if TYPE_CHECKING:
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
    json_: JsonOption = False,
) -> None:
    """Verify an export on this machine, or every byte of a prepared dataset.

    An export: checksums, golden images and, with --data, the whole gate. The golden images are part of the export, with
    the answers of every artifact when it was made.

    A dataset: the SHA-256 of every file, the checksum of every record, and the indexes. A launch does not do this: it
    checks each record when it is read.

    If anything differs, the file is named and the exit status is 1.
    """
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
