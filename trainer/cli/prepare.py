"""`trainer prepare`: turn labelled images into a dataset."""

import contextlib
import os
import pathlib
import shlex
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from trainer.console.output import JsonOption, note, print_answer, print_json

if TYPE_CHECKING:
    from trainer.data.dataset.manifest import Manifest
    from trainer.data.dataset.storage import DatasetPath
    from trainer.data.preparation.prepare import PrepareOptions

MAX_ROWS = 20


def prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder with one folder of images per class (or train, val and test above them); a .csv or .jsonl "
            "file; an archive, also by URL; tfds:NAME; tfrecords:FOLDER; digits, fashion-mnist, flowers, caltech101 or "
            "cats_vs_dogs.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str,
        typer.Option(metavar="DATASET", help="The dataset to write, also on gs://; it appears complete or not at all."),
    ],
    val: Annotated[
        float, typer.Option(help="Share of each class for validation; a split of the source is kept.")
    ] = 0.1,
    test: Annotated[float, typer.Option(help="Share of each class for the test; a split of the source is kept.")] = 0.1,
    train: Annotated[
        float | None,
        typer.Option(
            help="Share of each class for training, such as 0.2; the rest is left out.",
            show_default="all that --val and --test leave",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Decides the splits and the order; the same seed gives the same bytes.")
    ] = 0,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="CLASS", help="Leave this class out; repeatable.", show_default=False),
    ] = None,
    fraction: Annotated[
        float,
        typer.Option(help="Take only this share of each class, then split it; 0.2 takes all that 0.1 takes, and more."),
    ] = 1.0,
    per_class: Annotated[
        int | None, typer.Option(min=1, help="Take at most this many images of each class, over all splits.")
    ] = None,
    group_column: Annotated[
        str | None,
        typer.Option(
            help="Column of a listing (patient, camera, burst) whose groups are never divided between splits."
        ),
    ] = None,
    max_side: Annotated[
        int | None,
        typer.Option(min=1, metavar="PX", help="Shrink images whose longer side has more pixels than this."),
    ] = None,
    sample_bits: Annotated[
        int | None,
        typer.Option(
            metavar="BITS",
            help="Bits in use in 16-bit images whose files do not say it, such as 12.",
            show_default="what their highest value needs",
        ),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="The SHA-256 that an archive must have; required for a URL.")
    ] = None,
    max_bad_fraction: Annotated[
        float, typer.Option(help="Fail if a larger share of the files is corrupt, truncated, empty or not an image.")
    ] = 0.01,
    workers: Annotated[int, typer.Option(min=0, help="Threads that read and decode; 0: one per core.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing dataset.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard the work of an interrupted preparation of --out.")
    ] = False,
    preview: Annotated[
        pathlib.Path | None,
        typer.Option(metavar="FILE.png", help="Draw a few images as training will see them, augmented by --config."),
    ] = None,
    config: Annotated[
        pathlib.Path | None, typer.Option(help="The recipe that --preview follows.", show_default="no augmentation")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Prepare labelled images as a dataset: checked, split by class, shuffled, sharded.

    Every image is decoded once with the decoder of training. The bytes of sound JPEG and PNG files are kept; images
    that training would read wrongly (rotated by EXIF, CMYK, transparent, TIFF...) are re-encoded and counted. Unusable
    files are listed in bad_files.jsonl with the reason.

    After a stop or a kill, the same command continues.
    """
    from trainer.config.config import load_config
    from trainer.data.dataset.storage import parse_path
    from trainer.data.preparation.prepare import PrepareOptions
    from trainer.data.sources import expand_source, open_source

    options = PrepareOptions(
        validation_fraction=val,
        test_fraction=test,
        train_fraction=train,
        seed=seed,
        exclude=tuple(exclude or ()),
        fraction=fraction,
        per_class=per_class,
        group_column=group_column,
        max_side_px=max_side,
        sample_bits=sample_bits,
        sha256=sha256,
        max_bad_fraction=max_bad_fraction,
        num_workers=workers,
    )
    # Refuse a wrong path before TensorFlow starts.
    source = expand_source(source)
    open_source(source, options.for_source)
    settings = load_config(config)
    target = parse_path(out)
    local = target if isinstance(target, pathlib.Path) else pathlib.Path(f".{target.name}.to-publish")
    _check_target(local, target, source, overwrite=overwrite)

    from trainer.system import tf_runtime

    with _without_keras():
        tf_runtime.configure(use_gpus=False)
    manifest = _prepare(source, local, target, options, overwrite=overwrite, restart=restart)
    if preview is not None:
        from trainer.data.preview.preview import write_preview

        write_preview(target, preview, config=settings)
    if json_:
        print_json(_answer(manifest, out))
        return
    print_answer(_count_table(manifest))
    print_answer(Text("\n".join([*_summary(manifest, out), *([f"preview     {preview}"] if preview else [])])))


def _check_target(local: pathlib.Path, target: "DatasetPath", source: str, *, overwrite: bool) -> None:
    from trainer.data.dataset.manifest import is_prepared
    from trainer.data.preparation.work_folder import check_target
    from trainer.errors import DataError

    if local == target:
        check_target(local, source, overwrite=overwrite)
    elif is_prepared(target) and not overwrite:
        raise DataError(f"{target} holds a prepared dataset already; give --overwrite, or another --out")


def _prepare(
    source: str,
    local: pathlib.Path,
    target: "DatasetPath",
    options: "PrepareOptions",
    *,
    overwrite: bool,
    restart: bool,
) -> "Manifest":
    """Prepare the dataset at `local`, and copy it to `target` if that is another place."""
    from trainer.console.progress import task_progress
    from trainer.data.dataset.publish import publish_dataset
    from trainer.data.preparation.prepare import prepare_dataset

    if isinstance(target, pathlib.Path):
        return prepare_dataset(
            source, target, options=options, overwrite=overwrite, restart=restart, progress=task_progress, note=note
        )
    # After an interrupted copy, the local dataset is made again: it may be of another source.
    manifest = prepare_dataset(
        source, local, options=options, overwrite=True, restart=restart, progress=task_progress, note=note
    )
    note(f"copying {local} to {target}")
    publish_dataset(local, target, overwrite=overwrite)
    shutil.rmtree(local)
    return manifest


@contextlib.contextmanager
def _without_keras() -> Iterator[None]:
    """Keep TensorFlow from importing Keras, which is not needed here and takes half as long again."""
    name = "TF_USE_LEGACY_KERAS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _answer(manifest: "Manifest", out: str) -> dict[str, Any]:
    return {
        "dataset": out,
        "content_hash": manifest.content_hash(),
        "task": manifest.task,
        "class_names": manifest.class_names,
        "splits": {
            name: {
                "num_examples": split.num_examples,
                "class_counts": split.class_counts,
                "num_shards": len(split.shards),
                "num_bytes": sum(shard.num_bytes for shard in split.shards),
            }
            for name, split in manifest.splits.items()
        },
        "split_origins": manifest.split_origins,
        "num_left_out": manifest.num_left_out,
        "beside": manifest.beside,
        "num_ignored": manifest.num_ignored,
        "num_bad_files": manifest.num_bad_files,
        "bad_files": [bad.model_dump() for bad in manifest.bad_files],
        "num_duplicates_across_splits": manifest.num_duplicates_across_splits,
        "duplicates": [duplicate.paths for duplicate in manifest.duplicates],
        "num_reencoded": manifest.num_reencoded,
        "deep_samples": manifest.deep_samples.model_dump() if manifest.deep_samples else None,
    }


def _count_table(manifest: "Manifest") -> Table:
    table = Table("class", *manifest.splits, header_style="bold", box=box.SIMPLE_HEAD, show_footer=True)
    table.columns[0].footer = f"{manifest.num_classes:,} classes"
    for column, split in zip(table.columns[1:], manifest.splits.values(), strict=True):
        column.justify = "right"
        column.footer = f"{split.num_examples:,}"
    for label, class_name in enumerate(manifest.class_names[:MAX_ROWS]):
        counts = (f"{split.class_counts[label]:,}" for split in manifest.splits.values())
        table.add_row(Text(class_name), *counts)
    if manifest.num_classes > MAX_ROWS:
        table.add_row(f"... {manifest.num_classes - MAX_ROWS:,} more", *("" for _ in manifest.splits))
    return table


def _summary(manifest: "Manifest", out: str) -> list[str]:
    from trainer.data.preparation.remarks import remarks_on

    lines = [f"{word:<12}{sentence}" for word, sentence in remarks_on(manifest, out)]
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    num_bytes = sum(shard.num_bytes for shard in shards)
    lines.append(f"written     {out}: {len(shards):,} shard{'s'[: len(shards) != 1]}, {num_bytes / 1e6:,.1f} MB")
    if {"train", "validation"} <= manifest.splits.keys():
        lines.append(f"next        trainer launch --data {shlex.quote(out)}")
    else:
        split = list(manifest.splits)[-1]
        lines.append(f"next        trainer evaluate RUN --data {shlex.quote(out)} --split {split}")
        lines.append("            (training needs both a train and a validation split)")
    return lines
