"""What all sections have in common."""

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
Positive = Annotated[int, pydantic.Field(ge=1)]
NonNegative = Annotated[int, pydantic.Field(ge=0)]


class Section(pydantic.BaseModel):
    """A section of the configuration: unknown keys and values of another type are errors."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
