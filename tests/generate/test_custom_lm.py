"""A language model of one's own: the tutorial's runs, the whole loop works, anything else has a plain error."""

import re
from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny_models

import tessera
from tessera.generate import CustomLM, generate, stream_audio, stream_images
from tessera.generate.decoding.custom_lm import NEEDED
from tessera.lm.patterns.pattern import CodebookPattern, DelayConfig, ParallelConfig
from tessera.tokenize.spec import AudioGeometry, TokenSpec

TUTORIAL = (Path(__file__).resolve().parents[2] / "docs/tutorials/python.md").read_text(encoding="utf-8")


class Counting:
    """Prefers id (step + codebook) % cardinality of the codes, and the end once `frames` are there."""

    def __init__(self, spec, arrangement, frames=5):
        self.spec, self.arrangement, self.frames, self.seen = spec, arrangement, frames, []

    def logits(self, ids):
        self.seen.append(ids.clone())
        step, sizes = ids.shape[2] - 1, self.arrangement.output_sizes
        logits = torch.zeros(len(ids), len(sizes), max(sizes))
        for k, size in enumerate(self.spec.cardinalities):
            logits[:, k, (step + k) % size] = 40.0
        if self.arrangement.variable_length and step >= self.frames:
            logits[:, 0, self.arrangement.end_ids[0]] = 80.0
        return logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def tones(folder):
    return tessera.load(folder / "tones", "cpu").tokenizer


@pytest.fixture(scope="module")
def shapes(folder):
    return tessera.load(folder / "shapes", "cpu").tokenizer


def test_the_tutorial_has_one():
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", TUTORIAL, re.S) if "CustomLM" in text]
    for name in NEEDED:
        assert re.search(rf"\b{name}\b", block), name
    exec(compile(block, "tutorial", "exec"), {"__name__": "tutorial"})


@pytest.mark.parametrize("config", [ParallelConfig(), DelayConfig()], ids=lambda config: config.kind)
def test_codes_and_end_are_those_it_prefers(tones, config):
    arrangement = CodebookPattern(config, tones.spec.cardinalities, variable_length=True)
    own = Counting(tones.spec, arrangement)
    result = generate(own, tones, max_frames=9)
    assert result.ended == (True,) and result.lengths.tolist() == [5]
    for k, size in enumerate(tones.spec.cardinalities):
        delay = k if config.kind == "delay" else 0
        assert result.codes[0, k].tolist() == [(frame + delay + k) % size for frame in range(5)]
    assert [ids.shape[2] for ids in own.seen] == list(range(1, len(own.seen) + 1)), "all ids so far, one more each step"
    assert torch.equal(own.seen[0][0, :, 0], torch.tensor(arrangement.start_ids))


def test_seeds_prompts_and_streams(tones, shapes):
    class Noisy(Counting):
        def logits(self, ids):
            return super().logits(ids) / 40

    own = Noisy(tones.spec, CodebookPattern(DelayConfig(), tones.spec.cardinalities))
    several = generate(own, tones, n=3, seed=4, num_frames=6, temperature=0.9, top_k=5)
    alone = generate(own, tones, seed=5, num_frames=6, temperature=0.9, top_k=5)
    assert torch.equal(several[1].codes, alone.codes) and not torch.equal(several[0].codes, alone.codes)
    prompt = alone.codes[0, :, :2]
    assert torch.equal(generate(own, tones, prompt=prompt, num_frames=6).codes[0, :, :2], prompt)
    chunks = list(stream_audio(own, tones, seed=5, num_frames=6, temperature=0.9, top_k=5))
    assert torch.equal(torch.cat(chunks, dim=1), alone.media[0])
    drawn = Noisy(shapes.spec, CodebookPattern(ParallelConfig(), shapes.spec.cardinalities))
    *_, last = stream_images(drawn, shapes, seed=1)
    assert torch.equal(last, generate(drawn, shapes, seed=1).media[0])


def test_values_that_a_codebook_does_not_have_are_never_drawn():
    sizes = (4, 9, 2)
    geometry = AudioGeometry(sample_rate=8000, samples_per_frame=4)

    class Silent:
        spec = TokenSpec(name="tiny", cardinalities=sizes, geometry=geometry, fingerprint="0" * 64)

        def decode(self, codes):
            return torch.zeros(len(codes), 1, 4 * codes.shape[2])

    class Uniform:
        spec, arrangement = Silent.spec, CodebookPattern(ParallelConfig(), sizes)

        def logits(self, ids):
            return torch.zeros(*ids.shape[:2], 9)

    codes = generate(Uniform(), Silent(), num_frames=200).codes[0]
    assert [sorted(set(row.tolist())) for row in codes] == [list(range(size)) for size in sizes]


def test_anything_else_has_a_plain_error(folder, tones, shapes):
    model = tessera.load(folder / "tones", "cpu")
    fitting = CodebookPattern(ParallelConfig(), tones.spec.cardinalities)

    class Half:
        spec = tones.spec

    class Wrong(Half):
        arrangement, logits = fitting, 3

    class Other(Half):
        arrangement = CodebookPattern(ParallelConfig(), (2, 2))
        logits = staticmethod(lambda ids: ids)

    class Flat(Half):
        arrangement = fitting
        logits = staticmethod(lambda ids: torch.zeros(1, 7))

    class Listed(Half):
        arrangement = fitting
        logits = staticmethod(lambda ids: [1.0])

    for call, message in (
        (lambda: generate("digits", tones), r"found the path 'digits'; use tessera.load\('digits'\).generate"),
        (lambda: generate(folder, tones), r"found the path .*; use tessera.load"),
        (lambda: generate(model, tones), r"a Model has both, use model.generate\(...\)"),
        (lambda: generate(tones, model.lm), "the language model first and the tokenizer second"),
        (lambda: generate(None, tones), "found None without spec"),
        (lambda: generate(Half(), tones), r"found a Half without arrangement \(a CodebookPattern\), logits \(ids"),
        (lambda: generate(torch.nn.Linear(2, 2), tones), "found a Linear without spec"),
        (lambda: generate(Half, tones), "found the class Half; create an instance first"),
        (lambda: generate(Wrong(), tones), "logits a method"),
        (lambda: generate(Other(), tones), r"has codebooks of \[2, 2\] codes"),
        (
            lambda: generate(Flat(), tones, num_frames=2),
            r"logits of a Flat must be floating point \[1, 3, .*found torch.*\[1, 7\]",
        ),
        (lambda: generate(Listed(), tones, num_frames=2), "logits of a Listed must be floating point .*found a list"),
        (lambda: generate(model.lm, "speech"), "takes a tokenizer second .*found a str without spec, decode"),
        (lambda: generate(model.lm, None), "takes a tokenizer second .*found None"),
        (lambda: generate(model.lm, shapes, text_ids=[1]), "tokenizer"),
        (lambda: generate(Flat(), tones, label=1), "takes no label, text, embedding or voice"),
        (lambda: generate(Flat(), tones, num_frames=2, cache="ring"), "cache: a custom language model"),
        (lambda: generate(Flat(), tones, num_frames=2, step="compiled"), "step"),
        (lambda: generate(Flat(), tones, num_frames=2, guidance=2.0), "guidance"),
        (lambda: generate(Flat(), tones, num_frames=2, draft=2), "draft"),
        (lambda: stream_audio("digits", tones), r"use tessera.load\('digits'\).stream"),
        (lambda: stream_images(model, shapes), r"use model.stream"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_protocol_is_public():
    assert tessera.generate.CustomLM is CustomLM and set(NEEDED) == {"spec", "arrangement", "logits"}
