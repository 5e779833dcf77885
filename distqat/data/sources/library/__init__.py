"""The source `datasets`: what Hugging Face's library of that name reads, by the section `dataset`.

`tables` opens rows, `columns` finds what is wanted in them; `images`, `texts` and `sounds` make samples of rows, with
`packing`, `resampling` and `cache` below. Nothing of a data set is run as code.
"""

from __future__ import annotations

from distqat.config import RunConfig
from distqat.data.sources.library import images, sounds, texts
from distqat.data.sources.splits import Source, SourceShape
from distqat.errors import DataError
from distqat.model.shapes import DataShape


def shape(config: RunConfig) -> SourceShape:
    """What the section says. Raises DataError when it says too little."""
    section = config.dataset
    if missing := section.missing():
        raise DataError(f"data.source is datasets: {missing}")
    if section.task == "cv":
        return SourceShape("cv", DataShape("image", (section.channels, section.image, section.image), section.classes))
    if section.task == "llm":
        return SourceShape("llm", DataShape("tokens", (config.data.sequence,), section.classes))
    return SourceShape("speech", DataShape("audio", (sounds.samples(section),), section.classes))


def load(config: RunConfig) -> Source:
    """The data set that the section names. Raises DataError when it cannot be read, or is not as the section says."""
    found, section = shape(config), config.dataset
    if found.task == "cv":
        train, held_out = images.load(section, config.run.seed)
    elif found.task == "llm":
        train, held_out = texts.load(section, config.data.sequence)
    else:
        train, held_out = sounds.load(section)
    return Source(section.path, *found, train, held_out)
