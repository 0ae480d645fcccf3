"""Model: a language model with its tokenizer and label names, so that calls take text and names instead of ids."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..configs.recognize import describe_wrong, folder_kind, run_model
from ..configs.schema import nearest_name
from ..lm.checkpoints.model_directory import load_model
from ..lm.checkpoints.weights_file import StorageName
from ..lm.conditioning.registry import CodesConditionConfig
from ..lm.device import choose_device
from ..lm.generation_config import GenerationConfig
from ..lm.models.registry import AnyLM
from ..lm.quantization.cpu_fast_decode import enable_fast_cpu_decode_
from ..lm.quantization.packed_linear import WeightsName
from ..tokenize.bundled import bundled_model, bundled_models, shipped_path
from ..tokenize.spec import AudioGeometry, ImageGeometry, TokenSpec
from ..tokenize.text_coverage import unseen_in
from ..tokenize.text_tokenizer import TextTokenizer
from ..tokenize.tokenizer import AudioTokenizer, Tokenizer
from .decoding.dispatch import warm_up
from .decoding.loop import Progress
from .decoding.media import decode_one
from .long_form.speech import make_pieces, pieces_of, speak
from .long_form.windows import Making, make_row
from .pipeline import DEFAULT_BATCH, generate
from .requests.arguments import flag, function, plain, setting, shown, whole
from .requests.conditions import SAID, ConditionInputs
from .requests.prompt import Prompt, prompt_codes
from .requests.prompt_fit import UNLIKELY, gain_by_text
from .requests.request import Request, Settings, check_count, choose, make_request, max_frames_for
from .requests.settings import seeds_from
from .result import SUFFIXES, Result, issue_warnings, join_results
from .streaming.audio import sound_of, stream_audio
from .streaming.image import stream_images

if TYPE_CHECKING:
    from typing_extensions import Unpack

Label = int | str

LACKS = {
    "label": "has no labels",
    "text": "reads no text",
    "codes": "takes no voice, it has no condition of codes (to go on from a recording, give it as prompt)",
    "embedding": "takes no embedding",
}
"""Error text for a model without the condition."""
EXAMPLES = {"text": "what to say or show", "codes": "a file or codes", "embedding": "vectors [L, width]"}


class Model:
    """A loaded model. Its parts `lm`, `tokenizer`, `text`, `labels` and `defaults` can be used separately."""

    def __init__(
        self,
        lm: AnyLM,
        tokenizer: Tokenizer,
        text: TextTokenizer | None,
        labels: Sequence[str],
        defaults: GenerationConfig,
        name: str | None = None,
    ):
        self.lm = lm
        self.tokenizer = tokenizer
        self.text = text
        self.labels = list(labels)
        self.defaults = defaults
        self.name = name or tokenizer.spec.name

    @property
    def spec(self) -> TokenSpec:
        """The specification of its codes."""
        return self.lm.spec

    @property
    def suffix(self) -> str:
        """File suffix of saved samples: .png or .wav."""
        return SUFFIXES[self.spec.geometry.kind][0]

    def __repr__(self) -> str:
        conditions = ", ".join(condition.kind for condition in self.lm.config.conditions) or "nothing"
        size = f"{self.lm.num_parameters / 1e6:.1f} M parameters"
        return f"Model('{self.name}': {self.spec.geometry.kind}, conditioned on {conditions}, {size})"

    def generate(
        self,
        given: Label | Sequence[Label] | None = None,
        /,
        *,
        label: Label | Sequence[Label] | None = None,
        text: str | Sequence[str] | None = None,
        voice: Prompt | Sequence[Prompt] | None = None,
        voice_frames: int | None = None,
        embedding: Tensor | Sequence[Tensor] | None = None,
        n: int = 1,
        seed: int = 0,
        prompt: Prompt | None = None,
        prompt_frames: int | None = None,
        num_frames: int | None = None,
        max_seconds: float | None = None,
        unconditional: bool = False,
        exact: bool = False,
        batch: int = DEFAULT_BATCH,
        on_progress: Progress | None = None,
        **settings: Unpack[Settings],
    ) -> Result:
        """Generate samples.

        Args:
            given: positional text of a text model, otherwise the label: generate("one"), generate(7).
                A number is a label even if the model has both.
            label: a label name or id, or a list of them.
            text: the text to speak or to depict, or a list. Speech longer than the training examples is split into
                chunks (generate/long_form/speech.py).
            voice: a reference recording whose voice to use, or a reference image, or a list: media, codes [K, L] or a
                file, as `prompt`; it is not part of the result. For models with the condition `codes`.
            voice_frames: use only the first frames of the voice.
            embedding: vectors [L, width] of another model, or a list. For models with the condition `embedding`.
            n: samples for each entry of the lists.
            seed: sample i has the seed `seed + i`; the same seed and condition give the same sample whatever else is in
                the batch (with `exact=True` even where kernel rounding depends on the batch size).
            prompt: the beginning of the samples: codes [K, t] or [B, K, t], media (float, [C, N] or
                [C, height, width]), or a file. It is part of the result, and the text must include its words; if the
                text is split, the first chunk includes them.
            prompt_frames: use only the first frames of the prompt.
            num_frames: generate exactly this number of frames; None: until the model ends.
            max_seconds: limit for audio, instead of max_frames.
            unconditional: allow a conditional model to run without its condition.
            exact, batch, on_progress: as in `tessera.generate.generate`.
            settings: temperature, top_k, top_p, min_p, repetition_penalty, repetition_window, ras, ras_tau (one value,
                or one per codebook), end_bias, end_rule, max_silence, silence_codes, guidance, max_frames, min_frames,
                split, carry, retries, text_characters, frames_per_character, window_frames, stride_frames, passes,
                pass_schedule, choice_temperature, fine_temperature, fine_guidance,
                cache, draft, step (see `lm/generation_config.py`); the model's defaults apply to those not given.
        Raises:
            ValueError: an invalid argument; the message is one line and names it.
        Warns:
            GenerationWarning: a likely problem with the samples; also in `Result.warnings`.
        """
        label, text = self._named(given, label, text)
        n, seed, batch = whole("n", n, 1), whole("seed", seed), whole("batch", batch, 1)
        exact, on_progress = flag("exact", exact), function("on_progress", on_progress)
        num_frames, unconditional = _frames(num_frames), flag("unconditional", unconditional)
        settings = _settings(settings)
        notes = self._text_notes(text)
        if text is not None and self.text is not None and not isinstance(self.spec.geometry, ImageGeometry):
            texts: Any = list(text) if _is_list(text) else [text]
            pieces = self._pieces(texts, num_frames, settings, max_seconds, notes)
            if any(len(found) > 1 for found in pieces):
                lists = {"text": texts, "label": label, "voice": voice, "embedding": embedding}
                shared: dict[str, Any] = {"voice_frames": voice_frames, "unconditional": unconditional}
                start = self._start(prompt, prompt_frames, pieces[0][0], notes)
                call: dict[str, Any] = {"exact": exact, "batch": batch, **self._with_seconds(settings, max_seconds)}
                result = self._generate_long(lists, pieces, shared, n, seed, start, on_progress, call, notes)
                return replace(result, warnings=issue_warnings(notes))
        told = self._told(label, text, voice, voice_frames, embedding, unconditional, notes)
        result = generate(
            self.lm,
            self.tokenizer,
            **told,
            n=n,
            seed=seed,
            prompt=self._start(prompt, prompt_frames, text if isinstance(text, str) else None, notes),
            num_frames=num_frames,
            exact=exact,
            batch=batch,
            defaults=self.defaults,
            on_progress=on_progress,
            **self._with_least(text, num_frames, self._with_seconds(settings, max_seconds)),
        )
        if text is not None and num_frames is None:
            self._note_short([text] if isinstance(text, str) else text, result, settings, notes)
        return replace(result, warnings=issue_warnings(notes))

    def stream(
        self,
        given: Label | None = None,
        /,
        *,
        label: Label | None = None,
        text: str | None = None,
        voice: Prompt | None = None,
        voice_frames: int | None = None,
        embedding: Tensor | None = None,
        seed: int = 0,
        prompt: Prompt | None = None,
        prompt_frames: int | None = None,
        num_frames: int | None = None,
        max_seconds: float | None = None,
        unconditional: bool = False,
        **settings: Unpack[Settings],
    ) -> Iterator[Tensor]:
        """Generate one sample and yield it during generation: audio in chunks, an image as partial images.

        Audio: [C, n] float32 as samples become final; concatenated, the chunks equal `generate(...).media[0]` for the
        same arguments bit for bit. Images: [C, height, width] float32 after each row of frames (each pass of a masked
        model), with missing codes left neutral; the last one equals `generate(...).media[0]` bit for bit. Arguments
        and errors as in `generate`; its `Result.warnings` are issued as GenerationWarning.
        """
        label, text = self._named(given, label, text)
        seed, num_frames, unconditional = whole("seed", seed), _frames(num_frames), flag("unconditional", unconditional)
        settings = _settings(settings)
        notes = self._text_notes(text)
        picture = isinstance(self.spec.geometry, ImageGeometry)
        if isinstance(text, str) and self.text is not None and isinstance(self.tokenizer, AudioTokenizer):
            (pieces,) = self._pieces([text], num_frames, settings, max_seconds, notes)
            if len(pieces) > 1:
                own = self._with_seconds(settings, max_seconds)
                told = self._told(label, pieces[0], voice, voice_frames, embedding, unconditional, notes)
                start = self._start(prompt, prompt_frames, pieces[0], notes)
                issue_warnings(notes)
                return sound_of(self._speaking(pieces, told, seed, start, own), self.tokenizer.stream_decoder())
        told = self._told(label, text, voice, voice_frames, embedding, unconditional, notes)
        start = self._start(prompt, prompt_frames, text, notes)
        issue_warnings(notes)
        return (stream_images if picture else stream_audio)(
            self.lm,
            self.tokenizer,
            **told,
            seed=seed,
            prompt=start,
            num_frames=num_frames,
            defaults=self.defaults,
            **self._with_least(text, num_frames, self._with_seconds(settings, max_seconds)),
        )

    def warmup(
        self,
        batch: int = 1,
        *,
        label: Label | None = None,
        text: str | None = None,
        voice: Prompt | None = None,
        unconditional: bool = False,
        **settings: Unpack[Settings],
    ) -> None:
        """Compile or capture the steps of `generate` and `stream` in advance, for samples of up to max_frames (if not
        given: of any allowed length), so that later calls with the same settings do not wait for it.

        Args:
            batch: samples generated at a time. Each batch size compiles its own step.
            label, text, voice: an example; None: an arbitrary label or text, and no voice. A text also covers all
                lengths up to the next multiple of 64 tokens.
            settings: as in `generate`. Settings that select operations (guidance or none, top_k, cache, ...) must be
                the same there; other values may differ.
        Raises:
            ValueError: as in `generate`.
        """
        if not unconditional:
            text = "a" if text is None and label is None and self.text is not None else text
            label = 0 if label is None and self.text is None and self.labels else label
        told = ConditionInputs(**self._told(label, text, voice, None, None, unconditional, []))
        request = make_request(self.lm, self.tokenizer, told, batch, 0, None, None, self.defaults, settings)
        warm_up(self.lm, request)

    def _text_notes(self, text: str | Sequence[str] | None) -> list[str]:
        """Warnings about text that is unlike the model's training text."""
        if text is None or self.text is None:
            return []
        texts = [text] if isinstance(text, str) else list(text)
        unseen = unseen_in(texts, self.text, self.defaults.text_seen)
        return [] if unseen is None else [unseen]

    def _start(
        self, prompt: Prompt | None, num_frames: int | None, text: str | None, notes: list[str]
    ) -> Tensor | None:
        """Codes of a prompt. For models that read text, silence at the ends is trimmed. If `text`, which must include
        the words of the prompt, does not match it, a warning is appended to `notes`."""
        if prompt is None and num_frames is not None:
            raise ValueError(f"prompt_frames is {num_frames}, but no prompt was given; give one, or leave it out")
        codes = prompt_codes(prompt, self.tokenizer, num_frames, notes=None if self.text is None else notes)
        if codes is None or codes.dim() != 2 or text is None or self.text is None or not codes.shape[1]:
            return codes
        gain = gain_by_text(self.lm, ConditionInputs(text_ids=self.text.encode(text)), codes)
        if gain is not None and gain < -UNLIKELY:
            notes.append(
                "the prompt does not sound like the beginning of the text, which must tell what the prompt says too; "
                "words may be swallowed"
            )
        return codes

    def _with_least(self, text: str | Sequence[str] | None, num_frames: int | None, settings: Settings) -> Settings:
        """Settings with min_frames set to the fewest frames of the shortest text, if the model has frames_per_character
        and the call gives no min_frames."""
        rates = settings.get("frames_per_character") or self.defaults.frames_per_character
        if text is None or self.text is None or rates is None or num_frames is not None or "min_frames" in settings:
            return settings
        if not self.lm.arrangement.variable_length:
            return settings
        texts = [text] if isinstance(text, str) else text
        least = math.floor(rates[0] * min(map(self.text.num_characters, texts)))
        longest = settings.get("max_frames") or self.defaults.max_frames or least
        return {**settings, "min_frames": max(self.defaults.min_frames, min(least, longest))}

    def _note_short(self, texts: Sequence[str], result: Result, settings: Settings, notes: list[str]) -> None:
        """Warn about samples that are too short for their text."""
        rates = settings.get("frames_per_character") or self.defaults.frames_per_character
        if self.text is None or rates is None:
            return
        each = len(result) // len(texts)
        least = [math.floor(rates[0] * self.text.num_characters(texts[i // each])) for i in range(len(result))]
        lengths = result.lengths.tolist()
        short = [i for i in range(len(result)) if result.ended[i] and lengths[i] < least[i]]
        if short:
            first, count = (
                short[0],
                f"{len(short)} of {len(result)} samples are" if len(result) > 1 else "the sample is",
            )
            notes.append(
                f"{count} shorter than the text needs ({lengths[first]} frames of at least {least[first]}), so words "
                "are missing; try another seed"
            )

    def _pieces(
        self,
        texts: Sequence[str],
        num_frames: int | None,
        settings: Settings,
        max_seconds: float | None,
        notes: list[str],
    ) -> list[list[str]]:
        """Each text split into chunks; one chunk if it is no longer than the training examples. Warnings are appended
        to `notes`."""
        assert self.text is not None
        chosen = choose(self.defaults, self._with_seconds(settings, max_seconds))
        return [pieces_of(text, self.text, chosen, num_frames is not None, notes) for text in texts]

    def _speaking(
        self, pieces: Sequence[str], told: dict[str, Any], seed: int, prompt: Tensor | None, settings: Settings
    ) -> Making:
        """Generate a text of several chunks incrementally; `told` as returned by `_told`, with the text replaced for
        each chunk. The first chunk begins with the prompt, codes [K, t] or [1, K, t]."""
        assert self.text is not None and isinstance(self.spec.geometry, AudioGeometry)
        seeds_from(seed, 1)
        chosen = choose(self.defaults, settings)
        fixed: Any = {name: value for name, value in settings.items() if name not in ("min_frames", "max_frames")}
        nobody = all(told.get(kind) is None for kind in ("label", "voice", "embedding"))
        if nobody and chosen.carry == "nothing" and any(one.kind == "label" for one in self.lm.config.conditions):
            told = {**told, "label": seed % len(self.labels)}  # otherwise each chunk would have a different voice

        def request_for(ids: Sequence[int], own_seed: int, start: Tensor | None, fewest: int, most: int) -> Request:
            limits: Any = {**fixed, "max_frames": most, "min_frames": fewest}
            said = ConditionInputs(**{**told, "text_ids": ids})
            return make_request(self.lm, self.tokenizer, said, 1, own_seed, start, None, self.defaults, limits)

        fewest, most = settings.get("min_frames", 0), settings.get("max_frames")
        said = make_pieces(
            pieces, self.text.encode, self.text.num_characters, chosen.carry == "audio", self.spec.geometry,
            chosen.frames_per_character, fewest, chosen.text_characters,
        )  # fmt: skip
        # Settings are checked at the call, not on first iteration.
        if most is not None and fewest > most:
            raise ValueError(f"min_frames must be from 0 to max_frames ({most}), found {fewest}")
        room = said[0].most if most is None else min(said[0].most, most)
        if prompt is not None and prompt.shape[-1] >= room:
            raise ValueError(
                f"the prompt has {prompt.shape[-1]} frames, and the text is said in {len(pieces)} pieces of which the "
                f"first, {pieces[0]!r}, begins with it and may have {room} frames; give less of it (prompt_frames), or "
                "set split to 'off'"
            )
        make_row(self.lm, request_for(said[0].text_ids, seed, prompt, 0, room))
        start = None if prompt is None else prompt.reshape(prompt.shape[-2:])
        return Making(speak(self.lm, said, request_for, seed, chosen.retries, most, start))

    def _generate_long(
        self,
        lists: dict[str, Any],
        pieces: Sequence[Sequence[str]],
        shared: Any,
        n: int,
        seed: int,
        prompt: Tensor | None,
        on_progress: Progress | None,
        call: Any,
        notes: list[str],
    ) -> Result:
        """Generate texts of which some are split into chunks, one sample after another; each value of `lists` is one
        entry or a list."""
        given = {name: list(value) if _is_batch(value) else [value] for name, value in lists.items()}
        rows = max(len(value) for value in given.values())
        for name, value in given.items():
            if len(value) not in (1, rows):
                longest = next(name for name, value in given.items() if len(value) == rows)
                raise ValueError(f"{len(value)} {name}s but {rows} {longest}s; give as many, or one of either for all")
        if prompt is not None and prompt.dim() == 3 and len(prompt) != rows * n:
            raise ValueError(
                f"the prompt has {len(prompt)} rows for {rows * n} samples; give one [K, t] for all, or as many rows"
            )
        check_count(n)
        seeds = seeds_from(seed, rows * n)
        entries = []  # all are checked before the first is generated
        for entry in range(rows):
            own = {name: value[entry % len(value)] for name, value in given.items()}
            entries.append(self._told(**{**own, "text": pieces[entry % len(pieces)][0]}, **shared, notes=notes))
        parts: list[Result] = []
        for i, own_seed in enumerate(seeds):
            entry = i // n
            told = entries[entry]
            start = prompt if prompt is None or prompt.dim() == 2 else prompt[i]
            found = pieces[entry % len(pieces)]
            if len(found) == 1:
                own_call = self._with_least(found[0], None, call)
                made = generate(
                    self.lm, self.tokenizer, **told, seed=own_seed, prompt=start, defaults=self.defaults, **own_call
                )
                parts.append(made)
            else:
                settings: Any = {name: call[name] for name in call if name not in ("exact", "batch")}
                making = self._speaking(found, told, own_seed, start, settings)
                codes = torch.cat([piece.cpu() for piece in making], dim=1)[None]
                parts.append(
                    Result(
                        codes=codes,
                        lengths=torch.tensor([codes.shape[2]]),
                        media=[decode_one(self.tokenizer, codes[0])],
                        seeds=(own_seed,),
                        ended=(making.ended,),
                        spec=self.spec,
                    )
                )
            if on_progress is not None:
                on_progress(i + 1, rows * n)
        return join_results(parts)

    def _named(self, given: Any, label: Any, text: Any) -> tuple[Any, Any]:
        """(label, text), with the positional argument `given` assigned to one of them."""
        given, label, text = plain(given), plain(label), plain(text)
        if given is None:
            for one in text if _is_list(text) else [] if text is None else [text]:
                if not isinstance(one, str):
                    raise ValueError(f"text must be a string, found {shown(one)}")
            return label, text
        kinds = [condition.kind for condition in self.lm.config.conditions]
        numbers = all(isinstance(one, int) for one in given) if _is_list(given) else isinstance(given, int)
        if "text" in kinds and not (numbers and "label" in kinds):
            name, other = "text", text
        elif "label" in kinds:
            name, other = "label", label
        else:
            raise ValueError(f"'{self.name}' takes neither text nor label, found {shown(given)}; leave it out")
        if other is not None:
            raise ValueError(
                f"the {name} was given twice, {shown(given)} by position and {shown(other)} by name; give it once"
            )
        return self._named(None, label, given) if name == "text" else self._named(None, given, text)

    def label_id(self, label: Label) -> int:
        """Id of a label given by name or id. An unknown label raises ValueError, which names the nearest one."""
        if isinstance(label, str) and label in self.labels:
            return self.labels.index(label)
        if isinstance(label, int) and not isinstance(label, bool):
            if 0 <= label < len(self.labels):
                return label
            raise ValueError(f"'{self.name}' has the labels 0 to {len(self.labels) - 1}, found {label}")
        raise ValueError(f"'{self.name}' has no label {shown(label)}; {nearest_name(str(label), self.labels)}")

    def _told(
        self,
        label: Label | Sequence[Label] | None,
        text: str | Sequence[str] | None,
        voice: Prompt | Sequence[Prompt] | None,
        voice_frames: int | None,
        embedding: Tensor | Sequence[Tensor] | None,
        unconditional: bool,
        notes: list[str],
    ) -> dict[str, Any]:
        """The conditions as ids and codes. ValueError: the model lacks a given condition or needs a missing one.
        Warnings are appended to `notes`."""
        given = {"label": label, "text": text, "codes": voice, "embedding": embedding}
        kinds = [condition.kind for condition in self.lm.config.conditions]
        main = next((kind for kind in ("text", "label", "codes", "embedding") if kind in kinds), None)
        for kind, value in given.items():
            if value is not None and kind not in kinds:
                instead = f", give a {SAID[main]}" if main is not None and {main, kind} == {"text", "label"} else ""
                raise ValueError(f"'{self.name}' {LACKS[kind]}; leave {SAID[kind]} out{instead}")
            if _is_list(value) and not value:
                raise ValueError(f"the list of {SAID[kind]}s is empty; give at least one")
        if main is not None and not unconditional and given[main] is None:
            example = f"one of {', '.join(self.labels[:10])}" if main == "label" else EXAMPLES[main]
            what = f"{'an' if main == 'embedding' else 'a'} {SAID[main]}"
            raise ValueError(f"'{self.name}' needs {what}; give {example}, or ask for unconditional")
        told: dict[str, Any] = {"embedding": embedding}
        if label is not None:
            told["label"] = [self.label_id(one) for one in label] if _is_list(label) else self.label_id(label)  # type: ignore
        if text is not None and self.text is not None:
            told["text_ids"] = [self.text.encode(one) for one in text] if _is_list(text) else self.text.encode(text)  # type: ignore
        if voice is None and voice_frames is not None:
            raise ValueError(f"voice_frames is {voice_frames}, but no voice was given; give one, or leave it out")
        if voice is not None:
            voices = [self._voice(one, voice_frames, notes) for one in (voice if _is_list(voice) else [voice])]  # type: ignore
            told["voice"] = voices if _is_list(voice) else voices[0]
        return told

    def _voice(self, voice: Prompt, num_frames: int | None, notes: list[str]) -> Tensor:
        """Codes of a voice, checked against the model's limit."""
        codes = prompt_codes(voice, self.tokenizer, num_frames, "voice", notes)
        if codes is None:
            raise ValueError(
                "the voice is silent: no sound in it is above -50 dB; give a recording of somebody speaking"
            )
        longest = next(c.max_frames for c in self.lm.config.conditions if isinstance(c, CodesConditionConfig))
        if codes.shape[-1] > longest:
            raise ValueError(
                f"the voice has {codes.shape[-1]} frames, '{self.name}' reads at most {longest}; give a shorter "
                f"one, or voice_frames {longest} for its beginning"
            )
        return codes

    def _with_seconds(self, settings: Settings, max_seconds: float | None) -> Settings:
        if max_seconds is None:
            return settings
        geometry = self.spec.geometry
        if not isinstance(geometry, AudioGeometry):
            raise ValueError(f"max_seconds is {max_seconds}, but '{self.name}' makes pictures; leave it out")
        if "max_frames" in settings:
            raise ValueError("max_seconds and max_frames were both given; give one")
        return {**settings, "max_frames": max_frames_for(max_seconds, geometry)}


def load(
    model: str | Path,
    device: str | torch.device = "auto",
    dtype: StorageName | torch.dtype = "float32",
    weights: WeightsName | None = None,
) -> Model:
    """Load a model directory or a bundled model.

    Args:
        model: a directory that `tessera train` exported, or "digits", "speech".
        device: "auto": the first CUDA device if there is one, otherwise the CPU.
        dtype: storage and compute type of the language model.
        weights: storage of its matrices, "float32", "bfloat16", "int8" or "int4"; fewer bits make generation faster
            (see lm/quantization/packed_linear.py). None: dtype, and small models use a fast path on the CPU
            (lm/quantization/cpu_fast_decode.py).
    Raises:
        ValueError: no such directory or bundled model; the message names the bundled ones. FileNotFoundError,
            ValueError: an incomplete model directory, or an unavailable device.
    """
    where = choose_device(device)
    loaded = load_model(find_model(model), where, dtype, weights)
    lm = loaded.lm if weights else enable_fast_cpu_decode_(loaded.lm)
    return Model(lm, loaded.tokenizer, loaded.text, loaded.labels, loaded.defaults, name=str(model))


def find_model(model: str | Path) -> Path:
    """The directory of a model given as a directory, a finished run or a bundled name; a directory takes precedence."""
    folder, names = shipped_path(model), bundled_models()
    kind = folder_kind(folder)
    if kind == "model" or (kind is None and (folder / "config.json").is_file()):
        return folder
    found = run_model(folder)
    if found is not None:
        return found
    bundled = bundled_model(model)
    if bundled is not None and kind is None:
        return bundled
    wrong = describe_wrong(folder, "a model")
    if wrong is not None:
        raise ValueError(wrong)
    if folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no model here (config.json is missing); make one with: tessera train CONFIG"
        )
    known = nearest_name(str(model), names) if names else "this checkout has none"
    raise ValueError(f"no model '{model}': no such directory, and no bundled model of that name; {known}")


def _frames(num_frames: Any) -> int | None:
    return None if num_frames is None else whole("num_frames", num_frames, 1)


def _settings(given: Settings) -> Settings:
    """Settings with numpy and torch numbers converted to Python numbers."""
    return {name: setting(name, value) for name, value in given.items()}  # type: ignore[return-value]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_batch(value: object) -> bool:
    return value.dim() == 3 if isinstance(value, Tensor) else _is_list(value)
