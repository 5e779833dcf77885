"""The sizes of a model, as the run's config gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from distqat.errors import ModelError


class Options(BaseModel):
    """Base of each model's options: a name, a range and a default for every size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, model: str, values: Mapping[str, Any]) -> Self:
        """The options of a model from the run's config. Raises ModelError, which names what there is."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in fault["loc"])
            if fault["type"] == "extra_forbidden":
                known = ", ".join(sorted(cls.model_fields)) or "none"
                raise ModelError(f"model {model} has no option '{name}'; there are: {known}") from None
            message = fault["msg"].removeprefix("Value error, ")
            raise ModelError(f"option '{name}' of model {model}: {message} (got {fault['input']!r:.60})") from None
