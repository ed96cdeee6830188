"""The base class of the parts of a dry run's document."""

import pydantic


class Section(pydantic.BaseModel):
    """A part of the document, which is dumped as JSON."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
