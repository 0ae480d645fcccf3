"""Inputs of a run besides its weights: shards, tokenizer, text ids, labels, and a model built to match them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ...configs.files import read_json
from ...configs.schema import ConfigError
from ...lm.checkpoints.model_directory import LoadedModel, load_model
from ...lm.clustering.clustering import ClusteredTokenizer, Clustering, load_clustering
from ...lm.conditioning.text_encoder import TextEncoder, open_text_encoder
from ...lm.config import LMConfig
from ...lm.generation_config import GenerationConfig
from ...lm.layers.lora import merged_copy
from ...lm.models.base import LanguageModel
from ...lm.models.coarse_to_fine import CoarseToFine
from ...lm.models.registry import make_lm
from ...lm.models.transformer_lm import TransformerLM
from ...lm.patterns.text_stream import TextStream
from ...tokenize.data.shard_reader import Shards
from ...tokenize.spec import AudioGeometry, TokenSpec, check_same_tokenizer
from ...tokenize.text.base import TextTokenizer
from ...tokenize.text.registry import TextConfig, file_names, load_text, make_text, text_of_files
from ...tokenize.text.units import UnitText
from ...tokenize.tokenizer import Tokenizer, load_tokenizer
from ..common.batch_sampler import mix
from ..common.captions import CaptionReader
from ..common.checkpoint import STATE_FILE
from ..common.tasks import task_reader
from ..common.text_states import TextStates
from ..distributed.process_group import ProcessGroup
from ..initialization.origin import Origin, open_origin
from ..initialization.start_lm import start_lm_
from .aligned_text import AlignedText
from .config import TrainConfig
from .dataset import CodesDataset
from .reference_prompts import PromptSource
from .text_statistics import text_limits, text_made_of, with_limits

ENCODER_FOLDER = "text_encoder"
"""Folder of the text encoder in that of the run."""


@dataclass(frozen=True)
class TrainingSetup:
    """Opened inputs of a run, checked against each other."""

    lm_config: LMConfig
    """As in the file, with data-dependent sizes filled in and a preset codebook pattern expanded."""
    spec: TokenSpec
    tokenizer: Tokenizer
    text: TextTokenizer | None
    labels: list[str]
    """Label names in the order of their ids; empty without a label condition."""
    items: CodesDataset
    test: CodesDataset | None
    clustering: Clustering | None
    """Clustering for coarse labels, if used."""
    coarse: LoadedModel | None
    """The finished coarse-label model, for combining with a refiner."""
    limits: GenerationConfig
    """Text limits learned from the data: text lengths, frames per character for speech models that predict the end, and
    the characters seen."""
    origin: Origin | None = None
    """The model to start from; None: the weights are random, or all in a checkpoint."""
    text_encoder: TextEncoder | None = None
    """Makes the vectors of the condition embedding from texts; None: there is no such condition, or no encoder."""

    def make_lm(self, seed: int) -> TransformerLM:
        """Build a model with random weights, the same in every process."""
        torch.manual_seed(mix(seed, 0))
        vectors = self.tokenizer.vectors().cpu() if self.lm_config.needs_code_vectors else None
        return make_lm(self.lm_config, self.spec, vectors, self.clustering, self.tokenizer.quantizer)

    def first_lm(
        self, config: TrainConfig, started: Path | None = None, notes: list[str] | None = None
    ) -> TransformerLM:
        """The model of a run before its first step, the same each time; what learns has requires_grad.

        Args:
            started: checkpoint that will be loaded.
            notes: what comes from init.from is added.
        """
        lm = self.make_lm(config.seed)
        if config.init is not None:
            given = (self.labels, self.text, self.tokenizer, [] if notes is None else notes)
            give = None if self.origin is None else partial(self.origin.give_, *given)
            start_lm_(lm, config.init, config.lora, give, started)
        return lm

    def loaded(self, lm: LanguageModel, defaults: GenerationConfig) -> LoadedModel:
        """The model that generates: lm, its low-rank changes merged, or a refiner combined with the coarse-label
        model."""
        lm = merged_copy(lm)
        defaults = with_limits(defaults, self.limits)
        if self.coarse is None or lm.clustering is None:
            return LoadedModel(lm, self.tokenizer, self.text, self.labels, defaults, self.text_encoder)
        first = self.coarse
        both = CoarseToFine(first.lm.to(lm.device), lm).eval()
        return LoadedModel(both, self.tokenizer, first.text, first.labels, defaults)


def open_parts(config: TrainConfig, out: Path, world: ProcessGroup, started: Path | None = None) -> TrainingSetup:
    """Open the inputs in a config; the text tokenizer is loaded from out/text, taken from the model to start from, or
    trained on the texts of the shards.

    Nothing is written.

    Args:
        started: checkpoint that will be loaded; it has the labels, and without lora all weights.
    Raises:
        FileNotFoundError: the shards or the tokenizer do not exist.
        ValueError: shards of another tokenizer, or labels or texts that the conditions need and the data lack.
    """
    origin = None
    if config.init is not None and (started is None or config.lora is not None):
        origin = open_origin(config.init, config.lm)
    tokenizer = load_tokenizer(config.tokenizer)
    clustering = None if config.clusters is None else load_clustering(config.clusters)
    shards = Shards(config.data.shards)
    check_same_tokenizer(shards.spec, tokenizer.spec, f"data.shards {config.data.shards}")
    labelled = None
    if clustering is not None:
        clustering.check(tokenizer.spec)
        if config.lm.kind == "causal":
            tokenizer, labelled = ClusteredTokenizer(tokenizer, clustering), clustering
    label_config = next((condition for condition in config.lm.conditions if condition.kind == "label"), None)
    labels = _label_names(shards, origin, started) if label_config is not None else []
    text = _open_text(config.lm, origin, shards, out / "text", world)
    if label_config is not None and not labels:
        raise ConfigError(
            f"lm.conditions: label: the shards {config.data.shards} have no labels; "
            "leave the condition out or add labels to the corpus"
        )
    try:
        silent = tuple(text.silent) if isinstance(text, UnitText) else None
        lm_config = config.lm.filled(len(labels) or None, text.vocab_size if text else None, silent)
        lm_config = lm_config.explicit(shards.spec.num_codebooks)
    except ConfigError as error:
        raise ConfigError(f"lm.{error} (data.shards {config.data.shards})") from None
    known = labels if label_config is not None else None
    widths = [condition.width for condition in config.lm.conditions if condition.kind == "embedding"]
    encoder = _open_text_encoder(config, widths, origin, out / ENCODER_FOLDER)
    states = None if encoder is None or config.data.embedding != "text" else TextStates(encoder.to(world.device))
    prompts, missing = _prompts(config), config.data.missing
    aligned = AlignedText.of(config.lm.conditions, text)
    captions = CaptionReader(config.data.captions, config.seed)
    stream = tasks = None
    if lm_config.text_stream is not None:
        stream = TextStream(lm_config.text_stream, lm_config.specials, shards.spec.cardinalities)
        tasks = task_reader(config.data.tasks, lm_config.text_stream, config.seed)
    rest = (config.data.max_frames, labelled, prompts, missing, aligned, captions, next(iter(widths), None), states)
    rest = (*rest, stream, tasks)
    items = CodesDataset(shards, known, text, *rest)
    test = None
    if config.data.test is not None:
        test_shards = Shards(config.data.test)
        check_same_tokenizer(test_shards.spec, shards.spec, f"data.test {config.data.test}")
        test = CodesDataset(test_shards, known, text, *rest)
    coarse = None
    if config.export.coarse_model is not None:
        coarse = _open_coarse(config.export.coarse_model, clustering, text, known)
    speaks = isinstance(shards.spec.geometry, AudioGeometry) and lm_config.variable_length
    limits = text_limits(items, text) if text is not None and speaks else GenerationConfig()
    limits = limits if text is None else with_limits(limits, text_made_of(items, text))
    if coarse is not None:
        limits = coarse.defaults
    given = (lm_config, tokenizer.spec, tokenizer, text, labels, items, test, clustering, coarse, limits)
    return TrainingSetup(*given, origin, encoder)


def _open_text_encoder(
    config: TrainConfig, widths: list[int], origin: Origin | None, folder: Path
) -> TextEncoder | None:
    """The text encoder of the run: in `folder` that of its beginning, else the one of the config or of the model to
    start from. None: the lm has no condition embedding, or reads no texts and there is no encoder that fits.

    Args:
        widths: of the condition embedding, if there is one.
    """
    if not widths:
        return None
    if (folder / "config.json").is_file():
        return open_text_encoder(folder)
    given = None if config.text_encoder is None else open_text_encoder(config.text_encoder)
    encoder = given or (None if origin is None else origin.text_encoder)
    reads = config.data.embedding == "text"
    if encoder is None and reads:
        named = "there is no init.from" if config.init is None else f"{config.init.source} has none"
        raise ConfigError(
            f"data.embedding: text needs the text encoder, and {named}; name its folder with text_encoder: DIR"
        )
    if encoder is not None and encoder.width != widths[0]:
        if given is None and not reads:
            return None
        raise ConfigError(
            f"text_encoder: its states are {encoder.width} wide, the condition embedding of lm.conditions reads "
            f"{widths[0]}; use the one that the model was trained with"
        )
    return encoder


def _prompts(config: TrainConfig) -> PromptSource | None:
    longest = next((condition.max_frames for condition in config.lm.conditions if condition.kind == "codes"), None)
    if config.data.prompt is None or longest is None:
        return None
    return PromptSource(config.data.prompt, longest, config.seed)


def _open_coarse(
    folder: str, clustering: Clustering | None, text: TextTokenizer | None, labels: list[str] | None
) -> LoadedModel:
    """The coarse-label model, for a refiner with the same label and text ids (None: it lacks the condition)."""
    where = f"export.coarse_model {folder}"
    loaded = load_model(folder)
    if clustering is None or not isinstance(loaded.tokenizer, ClusteredTokenizer):
        raise ConfigError(f"{where}: not a model of coarse labels; train one with `clusters` and an lm of kind causal")
    check_same_tokenizer(loaded.spec, clustering.spec, where)
    if labels is not None and loaded.labels != labels:
        raise ConfigError(
            f"{where}: its labels are {loaded.labels[:5]} ..., but those of the shards are {labels[:5]} ..."
        )
    if text is not None and (loaded.text is None or loaded.text.files() != text.files()):
        raise ConfigError(f"{where}: its text tokenizer is a different one; train both stages on the same shards")
    return loaded


def _label_names(shards: Shards, origin: Origin | None, started: Path | None) -> list[str]:
    """The labels of the model in the order of ids: of a checkpoint, or of the data and the model it starts from."""
    saved = None if started is None else read_json(started / STATE_FILE).get("labels")
    if saved is not None:
        return list(saved)
    return list(shards.label_names) if origin is None else origin.label_names(shards.label_names)


def _open_text(
    lm: LMConfig, origin: Origin | None, shards: Shards, folder: Path, world: ProcessGroup
) -> TextTokenizer | None:
    """Load the text tokenizer in `folder`; if there is none, that of the model to start from, or the first process
    makes one without writing it. None: the lm has no text."""
    part = lm.text_part
    if part is None:
        return None
    config: TextConfig = part.text
    if world.share(all((folder / name).is_file() for name in file_names(config))):
        return load_text(folder, config)

    kept = None if origin is None else origin.kept_text(getattr(part, "kind", "stream"), config)
    if kept is not None:
        return kept

    def make() -> dict[str, bytes] | None:
        return dict(make_text(config, (text for text in shards.texts() if text)).files()) if world.is_first else None

    return text_of_files(config, world.share(world.together(make)), folder)
