"""Compare every export format of several networks with the network itself.

    python benchmarks/parity_table.py --keep DIR

Trains each network at 64 px on Fashion-MNIST (Debian package dataset-fashion-mnist) from random weights, two of them
in mixed_bfloat16, and EfficientNet-Lite0 from its ImageNet weights; exports all formats, and prints the gate's figures
on 2,400 validation images: largest difference, agreement, accuracy, size, and int8 fallbacks. Runs and exports stay in
--keep and are not made again, so that --networks can be done one by one. Exit status 1 if a network is below 0.85 or
an artifact is over its budget.
"""

import argparse
import pathlib
import subprocess
import sys
from typing import NamedTuple

from benchmarks.transfer_study import trainer, write_listing
from export.documents.markdown import format_bytes
from export.files.parity import ParityReport
from export.files.signature import Signature
from trainer.system.child_python import python_command

SHARE = 0.4  # of 60,000 images, a tenth of it for validation
MIN_ACCURACY = 0.85
FORMATS = "all,saved_model-bfloat16"


class Recipe(NamedTuple):
    """Training settings; the epochs are enough for 0.85, not tuned."""

    epochs: float
    batch_size: int = 32
    learning_rate: float = 1e-3
    precision: str = "float32"
    weights: str = "none"


RECIPES = {
    "efficientnet_lite0": Recipe(1.0, 64, 3e-4, weights="bundled"),
    "mobilenet_v2": Recipe(1.0, precision="mixed_bfloat16"),
    "mobilenet_v3_large": Recipe(2.0),
    "efficientnet_v2_b0": Recipe(1.25, precision="mixed_bfloat16"),
    "resnet50": Recipe(1.5),
    "convnext_tiny": Recipe(1.0, 32, 3e-4),
}


def train(name: str, dataset: pathlib.Path, run: pathlib.Path, size_px: int) -> None:
    recipe = RECIPES[name]
    settings = {
        "model.backbone": name,
        "model.weights": recipe.weights,
        "model.image_size_px": size_px,
        "train.epochs": recipe.epochs,
        "train.global_batch_size": recipe.batch_size,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": recipe.learning_rate,
        "optimizer.clip_norm": 1.0,
    }
    flags = [argument for key, value in settings.items() for argument in ("--set", f"{key}={value}")]
    precision = f"--precision={recipe.precision}"
    trainer("launch", "--device=cpu", precision, f"--data={dataset}", f"--run-dir={run}", *flags)


def describe(name: str, export: pathlib.Path) -> bool:
    """Print the table of one network; return whether its accuracy is sufficient and all artifacts are within budget."""
    report, signature = ParityReport.load(export), Signature.load(export)
    reference = next(c.figures.reference_accuracy for c in report.comparisons if c.figures)
    print(f"\n{name}, {RECIPES[name].precision}, {signature.image_size_px} px: accuracy {reference:.4f}", end="")
    print(f" over {report.num_images:,} images\n")
    print("| artifact | size | largest difference | agreement | set aside | accuracy |\n" + "| --- " * 6 + "|")
    for c in report.comparisons:
        assert c.figures is not None and c.figures.max_difference is not None, "it was published"
        set_aside = "" if c.figures.num_set_aside is None else c.figures.num_set_aside
        print(
            f"| {c.title} | {format_bytes(c.num_bytes)} | {c.figures.max_difference:.1e} | {c.figures.agreement:.2%} "
            f"| {set_aside} | {c.figures.accuracy:.4f} |"
        )
    for sentence in report.remarks():
        print(f"- {sentence}")
    sys.stdout.flush()
    return reference >= MIN_ACCURACY and not any(c.failure for c in report.comparisons)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=pathlib.Path, required=True)
    parser.add_argument("--networks", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--size-px", type=int, default=64)
    args = parser.parse_args()
    dataset = args.keep / "dataset"
    if not dataset.is_dir():
        (args.keep / "images").mkdir(parents=True, exist_ok=True)
        trainer("prepare", str(write_listing(args.keep / "images", SHARE, num_test_images=10)), f"--out={dataset}")
    is_good = True
    for name in args.networks:
        run, out = args.keep / name, args.keep / f"{name}-export"
        train(name, dataset, run, args.size_px)  # a run that is finished is left as it is
        if not out.is_dir():
            # Artifacts over budget are shown in the table, and end in status 1.
            command = ["export", str(run), "--out", str(out), f"--formats={FORMATS}", "--allow-failed"]
            subprocess.run(python_command("trainer", *command), check=True)
        is_good &= describe(name, out)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
