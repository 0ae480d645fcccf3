"""Model: a language model with its tokenizer and label names, so that calls take text and names instead of ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..lm.generation_config import GenerationConfig
from ..tokenize.audio.tokenizer import AudioTokenizer
from ..tokenize.spec import ImageGeometry
from .decoding.dispatch import warm_up
from .decoding.loop import Progress
from .long_form.speech import carries_audio, split_into_chunks
from .long_text import Entry, generate_long, speak_chunks, with_alignments
from .named_inputs import condition_inputs, is_list, label_and_text, recording_codes
from .parts import Label, ModelParts
from .pipeline import DEFAULT_BATCH, run_request
from .requests.arguments import flag, function, setting, whole
from .requests.keyword_types import Settings
from .requests.prompt import Prompt
from .requests.request import check_count, choose, make_request
from .result import Result, issue_warnings
from .streaming.audio import decode_stream, stream_audio
from .streaming.image import stream_images
from .text_checks import note_short, start_codes, unseen_text, with_max_seconds, with_min_frames
from .transcription import DEFAULT_BATCH as TEXTS_AT_A_TIME
from .transcription import write_texts

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Model(ModelParts):
    """A loaded model. Its parts `lm`, `tokenizer`, `text`, `labels` and `defaults` can be used separately."""

    def generate(
        self,
        given: Label | Sequence[Label] | None = None,
        /,
        *,
        label: Label | Sequence[Label] | None = None,
        text: str | Sequence[str] | None = None,
        voice: Prompt | Sequence[Prompt] | None = None,
        voice_frames: int | None = None,
        voice_text: str | None = None,
        turns: Sequence[tuple[str, Prompt]] = (),
        embedding: Tensor | Sequence[Tensor] | None = None,
        melody: Prompt | Sequence[Prompt] | None = None,
        description: str | Sequence[str] | None = None,
        language: str | Sequence[str] | None = None,
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
            text: the text to speak or to depict, or a description of music, or a list. Speech longer than the training
                examples is split into chunks (generate/long_form/speech.py).
            voice: a reference recording whose voice to use, or a reference image, or a list: media, codes [K, L] or a
                file, as `prompt`; it is not part of the result. For models with the condition `codes`.
            voice_frames: use only the first frames of the voice.
            voice_text: the words of the voice, for models that read it as an earlier turn of a conversation (CSM).
            turns: earlier turns of the conversation before all samples, for such models: a text and a recording each.
                They are not part of the result.
            embedding: vectors [L, width] of another model, or a list. For models with the condition `embedding`.
            melody: a recording whose melody to follow, or a list: an audio file, or samples [C, N] at the model's
                sample rate. For models with the condition `melody`.
            description: how it sounds, or a list, for models that read it beside the text (Parler-TTS, Qwen3-TTS).
            language: name of the language of the text, or a list, for models with such names (Qwen3-TTS); None: the
                model finds out.
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
            settings: sampling and decoding settings, the fields of `GenerationConfig` (lm/generation_config.py), for
                instance temperature, top_k, guidance, max_frames, cache; the model's defaults apply to those not given.
        Raises:
            ValueError: an invalid argument; the message is one line and names it.
        Warns:
            GenerationWarning: a likely problem with the samples; also in `Result.warnings`.
        """
        label, text = label_and_text(self, given, label, text)
        n, seed, batch = whole("n", n, 1), whole("seed", seed), whole("batch", batch, 1)
        exact, on_progress = flag("exact", exact), function("on_progress", on_progress)
        num_frames, unconditional = _frames(num_frames), flag("unconditional", unconditional)
        settings = with_max_seconds(self, _plain(settings), max_seconds)
        notes = unseen_text(self, text)
        chunks = self._chunks(text, num_frames, settings, notes)
        if any(len(found) > 1 for found in chunks):
            lists = {"label": label, "voice": voice, "embedding": embedding, "description": description}
            lists |= {"language": language}
            start = start_codes(self, prompt, prompt_frames, chunks[0][0], notes)
            said = {"voice_text": voice_text, "turns": turns}
            entries = self._entries(chunks, lists, voice_frames, unconditional, notes, said)
            check_count(n)
            result = generate_long(self, entries, n, seed, start, exact, batch, on_progress, settings)
            return replace(result, warnings=issue_warnings(notes))
        inputs = condition_inputs(
            self,
            label,
            text,
            voice,
            voice_frames,
            embedding,
            unconditional,
            notes,
            melody,
            description,
            voice_text,
            turns,
            language,
        )
        start = start_codes(self, prompt, prompt_frames, text if isinstance(text, str) else None, notes)
        own = with_min_frames(self, text, num_frames, settings)
        request = make_request(self.lm, self.tokenizer, inputs, n, seed, start, num_frames, self.defaults, own)
        result = run_request(self.lm, self.tokenizer, request, exact, batch, on_progress)
        if text is not None:
            result = with_alignments(self, result, [text] if isinstance(text, str) else text)
        if text is not None and num_frames is None:
            note_short(self, text, result, settings, notes)
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
        voice_text: str | None = None,
        turns: Sequence[tuple[str, Prompt]] = (),
        embedding: Tensor | None = None,
        melody: Prompt | None = None,
        description: str | None = None,
        language: str | None = None,
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
        label, text = label_and_text(self, given, label, text)
        seed, num_frames, unconditional = whole("seed", seed), _frames(num_frames), flag("unconditional", unconditional)
        settings = with_max_seconds(self, _plain(settings), max_seconds)
        notes = unseen_text(self, text)
        chunks = self._chunks(text, num_frames, settings, notes) if isinstance(text, str) else []
        split = chunks[0] if chunks and len(chunks[0]) > 1 else None
        first = text if split is None else split[0]
        inputs = condition_inputs(
            self,
            label,
            first,
            voice,
            voice_frames,
            embedding,
            unconditional,
            notes,
            melody,
            description,
            voice_text,
            turns,
            language,
        )
        start = start_codes(self, prompt, prompt_frames, first, notes)
        issue_warnings(notes)
        if split is not None and isinstance(self.tokenizer, AudioTokenizer):
            codes = speak_chunks(self, Entry(split, inputs), seed, start, settings)
            return decode_stream(codes, self.tokenizer.stream_decoder())
        stream = stream_images if isinstance(self.spec.geometry, ImageGeometry) else stream_audio
        return stream(
            self.lm,
            self.tokenizer,
            **vars(inputs),
            seed=seed,
            prompt=start,
            num_frames=num_frames,
            defaults=self.defaults,
            **with_min_frames(self, text, num_frames, settings),
        )

    def transcribe(
        self,
        audio: Prompt | Sequence[Prompt],
        /,
        *,
        label: Label | Sequence[Label] | None = None,
        max_ids: int | None = None,
        seed: int = 0,
        exact: bool = False,
        batch: int = TEXTS_AT_A_TIME,
        on_progress: Progress | None = None,
        **settings: Unpack[Settings],
    ) -> list[str]:
        """Write down the text of speech, with a model that has a text stream.

        Args:
            audio: a recording or a list: an audio file, a file of codes, samples (float, [C, N] at the model's sample
                rate) or codes [K, T]. An incomplete last frame of audio is dropped.
            label: the label of the recordings, or a list of them, for models that have labels as well.
            max_ids: maximum number of ids of a text; None: 32 for each second of its audio, and 16.
            seed: recording i has the seed `seed + i`; it matters at a temperature above 0 only.
            exact, batch, on_progress: as in `generate`.
            settings: sampling settings, as in `generate`; greedy decoding by default, whatever the model's defaults.
        Returns:
            The text of each recording, as the model's text tokenizer normalizes it.
        Raises:
            ValueError: an invalid argument, the model writes no text, or its text tokenizer has no decode; the message
                is one line.
        """
        if self.text is None or self.lm.text_stream is None or self.lm.text_stream.unpredicted:
            raise ValueError(f"'{self.name}' writes no text; that needs a model whose lm has a text_stream")
        self.text.decode(())  # an error now, not after the work, if its ids do not tell a text
        several = audio if is_list(audio) or (isinstance(audio, Tensor) and audio.dim() == 3) else [audio]
        codes = [recording_codes(self, one) for one in several]  # type: ignore[union-attr]
        if not codes:
            raise ValueError("the list of recordings is empty; give at least one")
        labels = [self.label_id(one) for one in label] if is_list(label) else None  # type: ignore[union-attr]
        ids = write_texts(
            self.lm,
            codes,
            label=labels if labels is not None or label is None else self.label_id(label),  # type: ignore[arg-type]
            max_ids=max_ids,
            seed=seed,
            exact=exact,
            batch=batch,
            defaults=GenerationConfig(temperature=0.0, cache=self.defaults.cache, step=self.defaults.step),
            on_progress=on_progress,
            **_plain(settings),
        )
        return [self.text.decode(text) for text in ids]

    def warmup(
        self,
        batch: int = 1,
        *,
        label: Label | None = None,
        text: str | None = None,
        voice: Prompt | None = None,
        description: str | None = None,
        unconditional: bool = False,
        **settings: Unpack[Settings],
    ) -> None:
        """Compile or capture the steps of `generate` and `stream` in advance, for samples of up to max_frames (if not
        given: of any allowed length), so that later calls with the same settings do not wait for it.

        Args:
            batch: samples generated at a time. Each batch size compiles its own step.
            label, text, voice, description: an example; None: an arbitrary label, text or description, and no voice. A
                text also covers all lengths up to the next multiple of 64 tokens.
            settings: as in `generate`. Settings that select operations (guidance or none, top_k, cache, ...) must be
                the same there; other values may differ.
        Raises:
            ValueError: as in `generate`.
        """
        if not unconditional:
            text = "a" if text is None and label is None and self.reads_text else text
            label = 0 if label is None and not self.reads_text and self.labels else label
            description = "a" if description is None and self.reads_description else description
        inputs = condition_inputs(self, label, text, voice, None, None, unconditional, [], None, description)
        request = make_request(self.lm, self.tokenizer, inputs, batch, 0, None, None, self.defaults, settings)
        warm_up(self.lm, request)

    def _chunks(
        self, text: str | Sequence[str] | None, num_frames: int | None, settings: Settings, notes: list[str]
    ) -> list[list[str]]:
        """Each text of a speech model split into chunks, one if it is no longer than the training examples; [] for
        other models. Warnings are appended to `notes`."""
        if text is None or self.text is None or isinstance(self.spec.geometry, ImageGeometry):
            return []
        config = choose(self.defaults, settings)
        texts = [text] if isinstance(text, str) else text
        carries = carries_audio(self.lm, config)
        return [split_into_chunks(one, self.text, config, num_frames is not None, carries, notes) for one in texts]

    def _entries(
        self,
        chunks: Sequence[Sequence[str]],
        given: dict[str, Any],
        voice_frames: int | None,
        unconditional: bool,
        notes: list[str],
        said: dict[str, Any],
    ) -> list[Entry]:
        """One entry per text, or per entry of the other conditions; all are checked before the first is generated.

        Args:
            given: label, voice, embedding, description and language: one for all texts, a list, or None.
            said: voice_text and turns.
        """
        lists = {"text": list(chunks)}
        lists |= {name: list(value) if _is_batch(value) else [value] for name, value in given.items()}
        rows = max(len(value) for value in lists.values())
        for name, value in lists.items():
            if len(value) not in (1, rows):
                longest = next(name for name, value in lists.items() if len(value) == rows)
                raise ValueError(f"{len(value)} {name}s but {rows} {longest}s; give as many, or one of either for all")
        entries = []
        for i in range(rows):
            own: Any = {name: value[i % len(value)] for name, value in lists.items()}
            inputs = condition_inputs(
                self, own["label"], own["text"][0], own["voice"], voice_frames, own["embedding"], unconditional, notes,
                description=own["description"], language=own["language"], **said,
            )  # fmt: skip
            entries.append(Entry(own["text"], inputs))
        return entries


def _frames(num_frames: Any) -> int | None:
    return None if num_frames is None else whole("num_frames", num_frames, 1)


def _plain(given: Settings) -> Settings:
    """Settings with numpy and torch numbers converted to Python numbers."""
    return {name: setting(name, value) for name, value in given.items()}  # type: ignore[return-value]


def _is_batch(value: object) -> bool:
    return value.dim() == 3 if isinstance(value, Tensor) else is_list(value)
