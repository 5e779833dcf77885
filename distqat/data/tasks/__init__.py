"""What the outputs of a model are worth: the loss that is trained on, and sums for the evaluation.

Each task is one class: `images`, `text`, `speech`. How its samples are made is in `data/sources/library`, in the module
of the same kind, which must do without torch; what its sums amount to is in `data/metrics.py`, which must too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distqat.data.tasks.images import ImageTask
from distqat.data.tasks.speech import SpeechTask
from distqat.data.tasks.text import LanguageTask
from distqat.data_sections import DatasetSection
from distqat.errors import DataError

AnyTask = ImageTask | LanguageTask | SpeechTask

_TASKS: Mapping[str, Callable[[DatasetSection], AnyTask]] = {
    "cv": lambda section: ImageTask(),
    "llm": lambda section: LanguageTask(),
    "speech": lambda section: SpeechTask(section.characters),
}

__all__ = ["AnyTask", "ImageTask", "LanguageTask", "SpeechTask", "find_task"]


def find_task(name: str, section: DatasetSection | None = None) -> AnyTask:
    """The task of that name, for the data of that section. Raises DataError."""
    make = _TASKS.get(name)
    if make is None:
        raise DataError(f"unknown task '{name}'; there are: {', '.join(sorted(_TASKS))}")
    return make(section or DatasetSection())
