"""`latency.json`: milliseconds per image of each format, measured on one machine."""

import pathlib
import statistics
from typing import Final, Literal

import pydantic

from export.files.read_file import StrictModel
from trainer.errors import ArtifactError

FILE_NAME = "latency.json"
SCHEMA_VERSION: Final = 1


class Latency(StrictModel):
    """Milliseconds per image in every round, for one input of an artifact and one number of threads.

    `relative` are the ratios to the run's model in the same rounds; null without a run.
    """

    title: str
    path: str | None
    runtime: str
    num_bytes: int
    num_threads: int
    ms: list[float]
    relative: list[float] | None

    @property
    def median_ms(self) -> float:
        return statistics.median(self.ms)


class LatencyReport(StrictModel):
    """The content of `latency.json`; `cpu` names the processor, without which the figures mean little."""

    schema_version: Literal[1] = SCHEMA_VERSION
    cpu: str
    num_rounds: int
    rows: list[Latency]

    @classmethod
    def load(cls, export_dir: pathlib.Path) -> "LatencyReport":
        """Load the file. Raises ArtifactError if it is missing or malformed."""
        try:
            return cls.model_validate_json((export_dir / FILE_NAME).read_bytes())
        except (FileNotFoundError, pydantic.ValidationError) as e:
            raise ArtifactError(
                f"{export_dir / FILE_NAME} holds no latencies ({type(e).__name__}); measure them with: trainer bench "
                f"export {export_dir} --record"
            ) from None
