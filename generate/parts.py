"""What a loaded model consists of."""

from __future__ import annotations

from collections.abc import Sequence

from ..configs.schema import nearest_name
from ..lm.conditioning.registry import DualTrackConfig
from ..lm.conditioning.text_encoder import TextEncoder
from ..lm.generation_config import GenerationConfig
from ..lm.models.base import LanguageModel
from ..tokenize.spec import TokenSpec
from ..tokenize.text.base import TextTokenizer
from ..tokenize.tokenizer import Tokenizer
from .requests.arguments import shown
from .result import SUFFIXES

Label = int | str


class ModelParts:
    """A language model with its tokenizer, text tokenizer, label names and default settings."""

    def __init__(
        self,
        lm: LanguageModel,
        tokenizer: Tokenizer,
        text: TextTokenizer | None,
        labels: Sequence[str],
        defaults: GenerationConfig,
        name: str | None = None,
        text_encoder: TextEncoder | None = None,
    ):
        self.lm = lm
        self.tokenizer = tokenizer
        self.text = text
        self.labels = list(labels)
        self.defaults = defaults
        self.name = name or tokenizer.spec.name
        self.text_encoder = text_encoder

    @property
    def spec(self) -> TokenSpec:
        """The specification of its codes."""
        return self.lm.spec

    @property
    def suffix(self) -> str:
        """File suffix of saved samples: .png or .wav."""
        return SUFFIXES[self.spec.geometry.kind][0]

    @property
    def condition_kinds(self) -> list[str]:
        """The kinds of its conditions: "label", "text" (aligned or not, also that of a text stream), "embedding",
        "codes". With a text encoder an embedding can be given as text as well."""
        dual = self.dual_track
        if dual is not None:
            has = {"label": dual.speakers, "embedding": dual.takes_vector, "codes": dual.speaker_encoder}
            return ["text", *(kind for kind, value in has.items() if value)]
        kinds = ["text" if condition.kind == "aligned" else condition.kind for condition in self.lm.config.conditions]
        if self.lm.text_stream is not None:
            kinds = ["text", *kinds]
        return ["text", *kinds] if self.text_becomes_embedding else kinds

    @property
    def dual_track(self) -> DualTrackConfig | None:
        """The condition `dual_track` of its language model; None: it has none."""
        kinds = self.lm.config.conditions
        return next((condition for condition in kinds if isinstance(condition, DualTrackConfig)), None)

    @property
    def text_becomes_embedding(self) -> bool:
        """Whether text is given to the text encoder, as the model reads no text itself."""
        return self.text_encoder is not None and self.text is None

    @property
    def reads_description(self) -> bool:
        """Whether it takes a description beside the text: the text encoder reads it and the text tokenizer the text, or
        both are in one sequence."""
        dual = self.dual_track
        if dual is not None:
            return dual.description_template is not None
        return self.text_encoder is not None and self.text is not None

    @property
    def reads_text(self) -> bool:
        """Whether it takes text, by a text tokenizer or a text encoder."""
        return self.text is not None or self.text_becomes_embedding

    def __repr__(self) -> str:
        conditions = ", ".join(self.condition_kinds) or "nothing"
        size = f"{self.lm.num_parameters / 1e6:.1f} M parameters"
        return f"Model('{self.name}': {self.spec.geometry.kind}, conditioned on {conditions}, {size})"

    def label_id(self, label: Label) -> int:
        """Id of a label given by name or id. An unknown label raises ValueError, which names the nearest one."""
        if isinstance(label, str) and label in self.labels:
            return self.labels.index(label)
        if isinstance(label, int) and not isinstance(label, bool):
            if 0 <= label < len(self.labels):
                return label
            raise ValueError(f"'{self.name}' has the labels 0 to {len(self.labels) - 1}, found {label}")
        raise ValueError(f"'{self.name}' has no label {shown(label)}; {nearest_name(str(label), self.labels)}")
