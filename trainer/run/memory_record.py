"""How many examples the memory of a replica has room for, found when more did not fit; a resumed run starts with it."""

from typing import Literal

import pydantic

from trainer.run.run_dir import RunDir
from trainer.system import atomic
from trainer.system.safe_read import read_small


class MemoryRecord(pydantic.BaseModel):
    """The contents of `memory.json`.

    Attributes:
        examples_per_part: no more are computed at a time; the number of parts follows from the batch of a replica,
            which another number of replicas changes.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    examples_per_part: int = pydantic.Field(ge=1)

    @classmethod
    def read(cls, run: RunDir) -> "MemoryRecord | None":
        """Return the record of `run`, or None: memory has sufficed so far, or the file is damaged and found anew."""
        try:
            return cls.model_validate_json(read_small(run.memory_file))
        except (OSError, ValueError):
            return None

    def write(self, run: RunDir) -> None:
        """Replace the record of `run`."""
        atomic.write_text(run.memory_file, self.model_dump_json(indent=2) + "\n")
