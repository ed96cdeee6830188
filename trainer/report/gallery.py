"""Random images of the split, and the mistakes that the model is surest of."""

import dataclasses

from trainer.config.config import Config
from trainer.data.dataset.storage import DatasetPath
from trainer.errors import DataError
from trainer.metrics.evaluation import Evaluation
from trainer.metrics.scores import Labels, Logits
from trainer.report.pictures import Picture, choose_mistakes, choose_samples, load_pictures
from trainer.run.run_dir import RunInfo

NUM_SAMPLES = 24
NUM_MISTAKES = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gallery:
    """Random samples and the surest mistakes; `missing` says why there are none."""

    samples: list[Picture]
    mistakes: list[Picture]
    missing: str | None


def load_gallery(
    info: RunInfo, config: Config, evaluation: Evaluation, labels: Labels, logits: Logits, dataset_dir: DatasetPath
) -> Gallery:
    """Load random samples and mistakes of the evaluated split, or the reason why the dataset cannot be read."""
    chosen = [choose_samples(len(labels), NUM_SAMPLES), choose_mistakes(labels, logits, NUM_MISTAKES, evaluation)]
    try:
        samples, mistakes = [
            load_pictures(info, dataset_dir, evaluation, indices, labels, logits, config.data.resize)
            for indices in chosen
        ]
    except DataError as e:
        return Gallery(samples=[], mistakes=[], missing=str(e))
    return Gallery(samples=samples, mistakes=mistakes, missing=None)
