"""What the parts of a dry run's document have in common."""

import pydantic


class Section(pydantic.BaseModel):
    """A part of the document; holds what JSON can hold."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
