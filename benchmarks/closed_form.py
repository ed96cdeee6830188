"""Compare the closed-form head with a trained one, in cost and accuracy.

    python benchmarks/closed_form.py

Both use the features of a frozen EfficientNet-Lite0 at 224 px, computed once, of about 2,000 training images of
Fashion-MNIST (Debian package dataset-fashion-mnist). The closed form solves for 20 strengths and takes the best on
validation; the trained head is the recipe `frozen`. Prints the times of features and solution, as reported by `trainer
launch`, and the accuracies on the same test images. Exit status 1 if the solution takes more than 5% of the time of
the features, or its accuracy is more than 0.5 points below the trained head's.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

from benchmarks.transfer_study import trainer, write_listing
from trainer.system.child_python import python_command

BACKBONE, SIZE_PX = "efficientnet_lite0", 224
TRAINING_SHARE = 0.04  # of 60,000, a tenth of it for validation
MAX_SHARE_OF_TIME, MAX_ACCURACY_DROP = 0.05, 0.005
_FEATURES = re.compile(r"features of (?:train|validation) .* in (?:(\d+):)?([\d.]+)")
_RIDGE = re.compile(r"ridge regression of (\d+) strengths in ([\d.]+) s")


def launch(recipe: str, dataset: pathlib.Path, run: pathlib.Path) -> str:
    """Train and return the command's standard error."""
    settings = ["--set", f"model.backbone={BACKBONE}", "--set", f"model.image_size_px={SIZE_PX}"]
    command = ["launch", "--device=cpu", f"--recipe={recipe}", f"--data={dataset}", f"--run-dir={run}", *settings]
    done = subprocess.run(
        python_command("trainer", *command),
        check=True,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    return done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test-images", type=int, default=2_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as workspace:
        place = pathlib.Path(workspace)
        (place / "images").mkdir()
        listing = write_listing(place / "images", TRAINING_SHARE, args.test_images)
        trainer("prepare", str(listing), f"--out={place / 'dataset'}")
        said = launch("linear-probe", place / "dataset", place / "closed")
        launch("frozen", place / "dataset", place / "trained")
        closed, trained = (trainer("evaluate", str(place / run), "--device=cpu") for run in ("closed", "trained"))
    features_secs = sum(60 * int(minutes or 0) + float(secs) for minutes, secs in _FEATURES.findall(said))
    ((num_strengths, solution_secs),) = _RIDGE.findall(said)
    share = float(solution_secs) / features_secs
    drop = trained["accuracy"] - closed["accuracy"]
    print(f"features {features_secs:.1f} s; {num_strengths} strengths {solution_secs} s, {share:.1%} of that")
    for name, evaluation in (("closed form", closed), ("trained", trained)):
        low, high = evaluation["accuracy_interval"]
        print(f"{name:<11} accuracy {evaluation['accuracy']:.4f} ({low:.4f} to {high:.4f})")
    return 0 if share <= MAX_SHARE_OF_TIME and drop <= MAX_ACCURACY_DROP else 1


if __name__ == "__main__":
    sys.exit(main())
