"""Next-scale decoding: against a slow one, guidance that grows, prompts, a drafting model."""

import pytest
import torch
from short_calls import generate_scales
from tiny_models import make_conditions, strong

from tessera.generate.decoding.dispatch import make_codes
from tessera.generate.model import Model
from tessera.generate.requests.conditions import ConditionInputs
from tessera.generate.requests.request import make_request
from tessera.generate.sampling.counter_rng import uniform
from tessera.generate.sampling.filters import make_filters, sample
from tessera.lm.conditioning.batch import ConditionBatch
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.guidance_config import IntervalGuidance, LinearGuidance
from tessera.lm.heads.bits import BitsHeadConfig
from tessera.lm.heads.parallel import ParallelHeadConfig
from tessera.lm.models.next_scale import NextScaleConfig
from tessera.lm.models.registry import make_lm
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import ScalesConfig, VQConfig
from tessera.tokenize.tokenizer import make_tokenizer

HEADS = {"parallel": ParallelHeadConfig(), "bits": BitsHeadConfig(), "grouped bits": BitsHeadConfig(groups=1)}


def make(condition="none", count=4, head="parallel", seed=0, **settings):
    torch.manual_seed(3)
    tokenizer = make_tokenizer(
        ImageTokenizerConfig(
            **{"name": "tiny", "height": 3, "width": 4, "channels": 1, "downsamplings": 0, "latent_dim": 3},
            **{"features": 4, "blocks": 1},
            quantizer=ScalesConfig(sizes=((1, 1), (2, 2), (3, 4)), quantizer=VQConfig(size=8)),
        )
    )
    configs, batch = make_conditions(condition, count)
    shape = {"width": 16, "layers": 1, "heads": 2, **settings}
    config = NextScaleConfig(conditions=configs, head=HEADS[head], **shape)
    torch.manual_seed(seed)
    lm = strong(make_lm(config, tokenizer.spec, quantizer=tokenizer.quantizer)).eval()
    return lm, batch, tokenizer


def slow_scales(lm, conditions, seeds, guidance=(1, 1, 1), sampling=None):
    """One cell after another from whole forward passes, without a cache."""
    filters, made = make_filters(sampling or GenerationConfig(), 1), []
    null = None if conditions is None else conditions.null()
    J = len(lm.head.sub_tokens)
    for row, seed in enumerate(seeds):
        codes, first = torch.zeros(1, 1, sum(lm.counts), dtype=torch.long), 0
        one = None if conditions is None else conditions.rows(slice(row, row + 1))
        for number, n in enumerate(lm.counts):
            logits = lm(codes, None, one).logits
            if guidance[number] != 1:
                plain = lm(codes, None, null.rows(slice(row, row + 1))).logits
                logits = plain + guidance[number] * (logits - plain)
            numbers = uniform(torch.tensor([seed]), number, n * J).view(n, J)
            drawn = []
            for cell in range(n):
                of_cell = [logits[0, j, first + cell] for j in range(J)]
                sub_tokens = [
                    sample(x[None, None], numbers[cell, j].view(1, 1), filters) for j, x in enumerate(of_cell)
                ]
                drawn.append(int(lm.head.sub_tokens.join(torch.cat(sub_tokens, dim=1))[0, 0]))
            codes[0, 0, first : first + n] = torch.tensor(drawn)
            first += n
        made.append(codes)
    return torch.cat(made)


@pytest.mark.sample(4)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("condition", ["none", "label", "text"])
def test_equals_a_slow_one(head, condition):
    lm, batch, _ = make(condition, 3, head)
    sampling = GenerationConfig(temperature=0.8, top_k=3)
    found = generate_scales(lm, batch if condition != "none" else None, [5, 6, 7], sampling)
    assert torch.equal(found, slow_scales(lm, batch if condition != "none" else None, [5, 6, 7], sampling=sampling))
    assert len(found.unique()) > 2, "not all alike"


@pytest.mark.parametrize("start", ["token", "condition"])
def test_guidance_grows_with_the_scale(start):
    """VAR: from none at the first scale to the whole number at the last."""
    lm, batch, _ = make("label", 3, start=start)
    wanted = slow_scales(lm, batch, [5, 6, 7], (1, 3, 5))
    assert torch.equal(generate_scales(lm, batch, [5, 6, 7], guidance=LinearGuidance(scale=5.0)), wanted)
    assert not torch.equal(generate_scales(lm, batch, [5, 6, 7]), wanted)
    last = slow_scales(lm, batch, [5, 6, 7], (1, 3, 3))
    assert torch.equal(generate_scales(lm, batch, [5, 6, 7], guidance=IntervalGuidance(scale=3.0, start=0.5)), last)


def test_given_codes_are_kept_and_the_rest_follows_from_them():
    lm, _, _ = make()
    free = generate_scales(lm, None, [1, 2])
    for t in (1, 3, 5, 9, 17):
        assert torch.equal(generate_scales(lm, None, [1, 2], prompt=free[:, :, :t]), free), "what it would have drawn"
    other = (free[:, :, :3] + 1) % 8
    found = generate_scales(lm, None, [1, 2], prompt=other)
    assert torch.equal(found[:, :, :3], other) and not torch.equal(found[:, :, 3:], free[:, :, 3:])


def test_another_model_may_draft_the_first_scales():
    """CoDe; a model that drafts for itself changes nothing."""
    small, _, _ = make()
    large, _, _ = make(seed=1, layers=2)
    draft = generate_scales(large, None, [4, 5], num_scales=2)
    assert draft.shape == (2, 1, 5) and torch.equal(draft, generate_scales(large, None, [4, 5])[:, :, :5])
    both = generate_scales(small, None, [4, 5], prompt=draft)
    assert torch.equal(both[:, :, :5], draft) and both.shape == (2, 1, 17)
    alone = generate_scales(small, None, [4, 5])
    assert torch.equal(generate_scales(small, None, [4, 5], prompt=alone[:, :, :5]), alone)


def test_through_the_model():
    lm, _, tokenizer = make("label", 3)
    model = Model(lm, tokenizer, None, ["a", "b", "c"], GenerationConfig(temperature=0.9))
    seen = []
    result = model.generate(label=["a", "c"], n=2, seed=3, batch=3, on_progress=lambda *at: seen.append(at))
    assert result.codes.shape == (4, 1, 17) and result.ended == (True,) * 4
    assert [tuple(picture.shape) for picture in result.media] == [(1, 3, 4)] * 4
    assert seen[-1] == (12, 12) and [done for done, _ in seen] == sorted(done for done, _ in seen)
    again = model.generate(label="c", n=1, seed=6)
    assert torch.equal(again.codes[0], result.codes[3])
    assert torch.equal(again.media[0], tokenizer.decode(again.codes)[0])
    grown = model.generate(label="c", seed=6, prompt=result.codes[3:, :, :5])
    assert torch.equal(grown.codes, again.codes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": GenerationConfig(ras=5)}, "ras is 5, but a next-scale model does not fill codes in order"),
        ({"num_scales": 4}, "num_scales must be 1 to 3, the scales of 'tiny', found 4"),
        ({"num_scales": 0}, "num_scales must be 1 to 3"),
        ({"cache": "ring"}, "cache kind 'ring' needs sequential steps"),
        ({"guidance": 2.0}, "the model has no conditions; use guidance 1"),
        ({"seeds": []}, "no seeds were given"),
    ],
)
def test_refusals(settings, message):
    lm, _, _ = make()
    with pytest.raises(ValueError, match=message):
        generate_scales(**{"lm": lm, "conditions": None, "seeds": [1], **settings})


def test_requests_that_cannot_be_met():
    lm, _, tokenizer = make()

    def request(**settings):
        prompt = settings.pop("prompt", None)
        return make_request(lm, tokenizer, ConditionInputs(), 1, 0, prompt, None, None, settings)

    with pytest.raises(ValueError, match="draft was set, but a next-scale model generates whole scales"):
        make_codes(lm, request(draft=2), False)
    with pytest.raises(ValueError, match="the prompt's codebook 0 must hold codes 0 to 7"):
        make_codes(lm, request(prompt=torch.full((1, 1, 2), 9)), False)
    assert ConditionBatch().num_rows is None


def test_a_stream_shows_each_scale():
    lm, _, tokenizer = make("label")
    model = Model(lm, tokenizer, None, ["a", "b", "c", "d"], GenerationConfig())
    whole = model.generate(label="c", seed=5, guidance=1.5)
    pictures = list(model.stream(label="c", seed=5, guidance=1.5))
    assert len(pictures) == 3 and torch.equal(pictures[-1], whole.media[0])
    for picture, made in zip(pictures, (1, 5, 17), strict=True):
        codes = whole.codes.clone()
        codes[:, :, made:] = -1
        assert torch.equal(picture, tokenizer.decode(codes)[0])
