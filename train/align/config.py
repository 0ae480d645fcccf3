"""Config of `tessera align`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat

from ...configs.schema import Config
from ...tokenize.data.corpus import FolderCorpus, ManifestCorpus
from ...tokenize.text.character_text import CharacterTextConfig
from ...tokenize.text.phoneme_text import PhonemeTextConfig


class AlignConfig(Config):
    """A complete `tessera align` file."""

    corpus: Annotated[FolderCorpus | ManifestCorpus, Field(discriminator="kind")]
    """The recordings and their transcripts."""
    text: Annotated[CharacterTextConfig | PhonemeTextConfig, Field(discriminator="kind")]
    """What the units are; the same as in the condition of the language model."""
    out: str
    """Folder of the alignments, NAME.align for each recording; the folder of the corpus puts them beside the media."""
    iterations: int = Field(10, ge=1, le=1000)
    """Iterations of training."""
    train_minutes: PositiveFloat = 60.0
    """Speech that the acoustic model is trained on, chosen by the names of the recordings; all of them are aligned."""
