"""Compare all recipes with few and with many images of Fashion-MNIST.

    python benchmarks/transfer_study.py

Trains EfficientNet-Lite0 from scratch and from its ImageNet weights in five ways, with 1% and with 20% of the training
images, through the command line, and evaluates each on the same test images. Needs the Debian package
dataset-fashion-mnist. Prints accuracy with its 95% interval and the time of the whole command; then, from `trainer
compare`, the difference from the first. Exit status 1 if, with the fewest images, the interval of the best transfer
overlaps that of `scratch`. The epochs let each run finish in minutes on two cores; they are not tuned. With --keep,
runs and comparison page stay in that folder.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from typing import Any, NamedTuple

from trainer.data.sources import open_source
from trainer.data.sources.candidate import Candidate
from trainer.system.child_python import python_command

BACKBONE = "efficientnet_lite0"
VALIDATION_SHARE = 0.1
# Epochs by share of the training images; few images need more.
EPOCHS = {
    "scratch": {0.01: 40, 0.2: 6},
    "linear-probe": {0.01: 1, 0.2: 1},
    "frozen": {0.01: 30, 0.2: 10},
    "staged": {0.01: 12, 0.2: 3},
    "finetune-top": {0.01: 20, 0.2: 3},
    "finetune": {0.01: 20, 0.2: 2},
}
# With few images, large batches leave too few steps for batch statistics to converge.
BATCH_SIZE = {0.01: 16, 0.2: 64}


class Outcome(NamedTuple):
    accuracy: float
    interval: tuple[float, float]
    secs: float


def write_listing(folder: pathlib.Path, share: float, num_test_images: int) -> pathlib.Path:
    """Write PNG files of `share` of each class's training images, a tenth for validation, and of test images."""
    source = open_source("fashion-mnist")
    groups: dict[tuple[str, str], list[Candidate]] = defaultdict(list)
    for candidate in source.candidates():
        groups[candidate.split or "train", candidate.class_names[0]].append(candidate)
    num_classes = len({name for _, name in groups})
    lines = []
    for (split, name), candidates in sorted(groups.items()):
        num = num_test_images // num_classes if split == "test" else round(share * len(candidates))
        for i, candidate in enumerate(candidates[:num]):
            to = "test" if split == "test" else "validation" if i < num * VALIDATION_SHARE else "train"
            path = folder / f"{to}-{name.replace('/', '-')}-{i}.png"
            path.write_bytes(source.read(candidate))
            lines.append(json.dumps({"path": path.name, "label": name, "split": to}))
    listing = folder / "listing.jsonl"
    listing.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return listing


def trainer(*arguments: str) -> Any:
    """Run the command with --json and return its answer."""
    done = subprocess.run(
        python_command("trainer", *arguments, "--json"),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    return json.loads(done.stdout)


def run_recipe(recipe: str, share: float, dataset: pathlib.Path, run: pathlib.Path, size_px: int) -> Outcome:
    epochs = EPOCHS[recipe][share]
    settings = [
        f"model.backbone={BACKBONE}",
        f"model.image_size_px={size_px}",
        f"train.epochs={epochs}",
        f"train.global_batch_size={BATCH_SIZE[share]}",
    ]
    if recipe == "staged":
        thirds = [{"epoch": epochs * i / 4, "trainable": part} for i, part in ((1, "top:2"), (2, "top:5"), (3, "all"))]
        settings.append(f"train.unfreeze={json.dumps(thirds)}")
    flags = [argument for setting in settings for argument in ("--set", setting)]
    started = time.perf_counter()
    trainer("launch", "--device=cpu", f"--recipe={recipe}", f"--data={dataset}", f"--run-dir={run}", *flags)
    secs = time.perf_counter() - started
    evaluation = trainer("evaluate", str(run), "--device=cpu")
    low, high = evaluation["accuracy_interval"]
    return Outcome(evaluation["accuracy"], (low, high), secs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.2], choices=[0.01, 0.2])
    parser.add_argument("--recipes", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--size-px", type=int, default=64)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--keep", type=pathlib.Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as workspace:
        place = args.keep or pathlib.Path(workspace)
        outcomes = {share: study(share, place / f"{share:g}", args) for share in sorted(args.shares)}
    fewest = outcomes[min(outcomes)]
    if "scratch" not in fewest or len(fewest) == 1:
        return 0
    best = max((name for name in fewest if name != "scratch"), key=lambda name: fewest[name].accuracy)
    is_apart = fewest[best].interval[0] > fewest["scratch"].interval[1]
    print(f"with the fewest images the intervals of {best} and scratch {'are apart' if is_apart else 'overlap'}")
    return 0 if is_apart else 1


def study(share: float, place: pathlib.Path, args: argparse.Namespace) -> dict[str, Outcome]:
    images = place / "images"
    images.mkdir(parents=True)
    trainer("prepare", str(write_listing(images, share, args.test_images)), f"--out={place / 'dataset'}")
    outcomes = {}
    for recipe in args.recipes:
        outcome = run_recipe(recipe, share, place / "dataset", place / recipe, args.size_px)
        outcomes[recipe] = outcome
        low, high = outcome.interval
        print(
            f"{share:5.0%}  {recipe:<13} accuracy {outcome.accuracy:.4f} ({low:.4f} to {high:.4f})  "
            f"{outcome.secs:6.1f} s",
            flush=True,
        )
    if len(outcomes) > 1:
        comparison = trainer("compare", *(str(place / name) for name in outcomes), f"--out={place / 'comparison.html'}")
        for each in comparison["runs"][1:]:
            (found,) = (m for m in each["difference"]["metrics"] if m["metric"] == "accuracy")
            low, high = found["interval"]
            print(
                f"{share:5.0%}  {each['name']:<13} {found['value']:+.4f} ({low:+.4f} to {high:+.4f}) to "
                f"{comparison['runs'][0]['name']}, p {each['difference']['corrected_p_value']:.2g}",
                flush=True,
            )
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
