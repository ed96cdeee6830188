"""The base class and the types of all sections."""

from typing import Annotated

import pydantic

from trainer.errors import UsageError
from trainer.system.paths import expand_path


def _expand(text: str) -> str:
    try:
        return expand_path(text)
    except UsageError as e:
        raise ValueError(str(e)) from None


# `~` is the home directory; other texts, such as names, stay as they are.
PathText = Annotated[str, pydantic.AfterValidator(_expand)]
# Counts stay far below the 64 bits of tensors and indices, also multiplied by one another.
MAX_COUNT = 2**31 - 1
Positive = Annotated[int, pydantic.Field(ge=1, le=MAX_COUNT)]
NonNegative = Annotated[int, pydantic.Field(ge=0, le=MAX_COUNT)]
# Keras seeds NumPy's generator with it, which takes 32 bits.
Seed = Annotated[int, pydantic.Field(ge=0, le=2**32 - 1)]


class Section(pydantic.BaseModel):
    """A section of the configuration: unknown keys, values of another type, NaN and infinity are errors."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
