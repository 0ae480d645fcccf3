"""What a run is made of besides its weights: shards, tokenizer, text ids, labels, and a model built to fit them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..lm.model import LMConfig, TokenLM
from ..tokenize.config import ConfigError
from ..tokenize.shards import Shards
from ..tokenize.spec import TokenSpec, check_same_tokenizer
from ..tokenize.text import MODEL_FILE, ByteTextConfig, SentencePieceConfig, TextTokenizer, load_text, make_text
from ..tokenize.tokenizer import Tokenizer, load_tokenizer
from .data import Items
from .lm_config import TrainConfig
from .sampler import mix
from .world import World


@dataclass(frozen=True)
class Parts:
    """Opened and checked against each other."""

    lm_config: LMConfig
    """As in the file, with the sizes that depend on the data filled in and a preset arrangement written out."""
    spec: TokenSpec
    tokenizer: Tokenizer
    text: TextTokenizer | None
    labels: list[str]
    """Label names in the order of their ids; empty without a label condition."""
    items: Items
    test: Items | None

    def make_lm(self, seed: int) -> TokenLM:
        """A model with random weights, alike in every process."""
        torch.manual_seed(mix(seed, 0))
        return TokenLM(
            self.lm_config, self.spec, self.tokenizer.vectors().cpu() if self.lm_config.needs_code_vectors else None
        )


def open_parts(config: TrainConfig, out: Path, world: World) -> Parts:
    """Open what a config names; the text tokenizer is trained on the shards' texts, once, and kept in out/text.

    Raises:
        FileNotFoundError: no shards or tokenizer there.
        ValueError: shards of another tokenizer, labels or texts that the conditions need and the data lack.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    shards = Shards(config.data.shards)
    check_same_tokenizer(shards.spec, tokenizer.spec, f"data.shards {config.data.shards}")
    label_config = next((condition for condition in config.lm.conditions if condition.kind == "label"), None)
    text_config = next((condition for condition in config.lm.conditions if condition.kind == "text"), None)
    labels = list(shards.label_names)
    text = _open_text(text_config.text, shards, out / "text", world) if text_config is not None else None
    if label_config is not None and not labels:
        raise ConfigError(
            f"lm.conditions: label: the shards {config.data.shards} have no labels; "
            "leave the condition out or add labels to the corpus"
        )
    try:
        lm_config = config.lm.filled(classes=len(labels) or None, vocab_size=text.vocab_size if text else None)
        lm_config = lm_config.explicit(shards.spec.num_codebooks)
    except ConfigError as error:
        raise ConfigError(f"lm.{error} (data.shards {config.data.shards})") from None
    known = labels if label_config is not None else None
    items = Items(shards, known, text, config.data.max_frames)
    test = None
    if config.data.test is not None:
        test_shards = Shards(config.data.test)
        check_same_tokenizer(test_shards.spec, tokenizer.spec, f"data.test {config.data.test}")
        test = Items(test_shards, known, text, config.data.max_frames)
    return Parts(lm_config, shards.spec, tokenizer, text, labels if known else [], items, test)


def _open_text(
    config: ByteTextConfig | SentencePieceConfig, shards: Shards, folder: Path, world: World
) -> TextTokenizer:
    """The text tokenizer in `folder`; made by the first process where it is not there yet."""

    def make() -> None:
        if world.is_first and not (folder / MODEL_FILE).is_file():
            made = make_text(config, (text for text in shards.texts() if text))
            folder.mkdir(parents=True, exist_ok=True)
            made.save(folder)

    world.together(make)
    return load_text(folder, config)
