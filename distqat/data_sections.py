"""The section `dataset`: which data `data.source: datasets` reads, and what becomes of them; see docs/data.md."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distqat.sections import Section

DataFormat = Literal["auto", "parquet", "arrow", "json", "csv", "text", "imagefolder", "audiofolder"]

DataTask = Literal["", "cv", "llm", "speech"]

Augmentation = Literal["crop", "flip"]

LETTERS = " 'abcdefghijklmnopqrstuvwxyz"
"""The usual characters of transcripts."""


class DatasetSection(Section):
    """Which data `data.source: datasets` reads, and what becomes of them; see docs/data.md."""

    path: str = Field("", description="Hub name, or a file, folder or glob on the hosts that read the data.")
    name: str = Field("", description="Configuration of a hub data set, such as wikitext-103-raw-v1.")
    revision: str = Field("", description="Revision of a hub data set; empty: the newest.")
    format: DataFormat = Field("auto", description="Of local files; auto: by their names.")
    split: str = Field("train", min_length=1, description="Part that is trained on.")
    held_out_split: str = Field(
        "", description="Part for evaluations; empty: `held_out` of the part that is trained on, never trained on."
    )
    held_out: float = Field(
        0.05, gt=0, lt=1, description="Share that is held out, the same in every run, without a held_out_split."
    )
    task: DataTask = Field("", description="cv: labels of images; llm: the next token; speech: transcripts (CTC).")
    input: str = Field("", description="Column of images, text or sound; empty: the usual names.")
    target: str = Field("", description="Column of labels or transcripts; empty: the usual names.")
    classes: int = Field(0, ge=0, description="Number of labels, or size of the vocabulary with the blank.")
    channels: Literal[1, 3] = Field(3, description="Of images: 3, or 1 for grey.")
    image: int = Field(32, ge=1, le=4096, description="Side to which images are brought, in pixels.")
    augment: list[Augmentation] = Field(
        default_factory=list, description="In training only: crop (at a random place), flip (left to right)."
    )
    mean: list[float] = Field(
        default_factory=list, description="Of each channel, of values 0 to 1; subtracted. Empty: 0.5."
    )
    std: list[Annotated[float, Field(gt=0)]] = Field(
        default_factory=list, description="Of each channel, by which values are divided. Empty: 0.5."
    )
    tokenizer: str = Field("bytes", min_length=1, description="bytes, a local directory, or a hub name.")
    sample_rate: int = Field(16000, ge=1000, le=192000, description="Of sound, in Hz; other rates are resampled.")
    seconds: float = Field(0.0, ge=0, le=3600, description="Longest recording; longer ones are left out.")
    labels: int = Field(0, ge=0, le=65536, description="Most characters of a transcript; longer ones are left out.")
    vocabulary: str = Field(
        "", description="Characters of transcripts, from 1 on (0: blank); empty: space, ' and a to z."
    )

    @property
    def characters(self) -> str:
        """Those of transcripts."""
        return self.vocabulary or LETTERS

    @model_validator(mode="after")
    def _numbers_fit(self) -> DatasetSection:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values and len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channels")
        if len(set(self.augment)) != len(self.augment):
            raise ValueError("augment names the same thing twice")
        if len(set(self.characters)) != len(self.characters):
            raise ValueError("vocabulary has a character twice")
        return self

    def missing(self) -> str:
        """What is not said of the data, or does not fit, in a sentence; empty: nothing."""
        if not self.path:
            return "dataset.path must say which data"
        if not self.task:
            return "dataset.task must be cv, llm or speech"
        if self.classes < 2:
            return f"dataset.classes must be at least 2, got {self.classes}"
        if self.task == "llm" and self.tokenizer == "bytes" and self.classes < 256:
            return f"dataset.classes must be at least 256 for bytes, got {self.classes}"
        if self.task == "speech":
            return self._missing_of_speech()
        return ""

    def _missing_of_speech(self) -> str:
        if not self.seconds:
            return "dataset.seconds must say how long the longest recording is"
        if not self.labels:
            return "dataset.labels must say how many characters the longest transcript has"
        if self.classes <= len(self.characters):
            return f"dataset.classes must be at least {len(self.characters) + 1}: the characters, and 0 for the blank"
        return ""
