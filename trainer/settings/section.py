"""What all sections have in common."""

from typing import Annotated

import pydantic

Positive = Annotated[int, pydantic.Field(ge=1)]
NonNegative = Annotated[int, pydantic.Field(ge=0)]


class Section(pydantic.BaseModel):
    """A section of the configuration: unknown keys and values of another type are errors."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)
