"""`latency.json`: milliseconds a batch of each format, as measured on one machine."""

import pathlib
import statistics
from typing import Final, Literal

import pydantic

from trainer.errors import ArtifactError

FILE_NAME = "latency.json"
SCHEMA_VERSION: Final = 1


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class Latency(_Model):
    """One way to call an artifact, at one number of threads: milliseconds for one image, of every round.

    relative: of the times in the same rounds to those of the model of the run; null without a run.
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


class LatencyReport(_Model):
    """`latency.json`; `cpu` says which processor, for figures of another say little."""

    schema_version: Literal[1] = SCHEMA_VERSION
    cpu: str
    num_rounds: int
    rows: list[Latency]

    @classmethod
    def load(cls, export_dir: pathlib.Path) -> "LatencyReport":
        """Raises ArtifactError where the file is missing or not of this form."""
        try:
            return cls.model_validate_json((export_dir / FILE_NAME).read_bytes())
        except (FileNotFoundError, pydantic.ValidationError) as e:
            raise ArtifactError(
                f"{export_dir / FILE_NAME} holds no latencies ({type(e).__name__}); measure them with: trainer bench "
                f"export {export_dir} --record"
            ) from None
