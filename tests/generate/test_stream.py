"""A stream equals the whole, sample for sample, whatever network decodes it, causal or not."""

import pytest
import torch
from test_sound_networks import HOP, PARTS, tokenizer_of
from tiny_models import strong

from tessera.generate.model import Model
from tessera.lm.config import LMConfig
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.patterns.pattern import DelayConfig


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", PARTS)
def test_a_stream_equals_the_whole(name):
    """Alone, as a row of a batch, after a prompt, and where the length is given; chunks are of whole frames."""
    tokenizer = tokenizer_of(name)
    torch.manual_seed(0)
    lm = TokenLM(LMConfig(width=16, layers=1, heads=2, arrangement=DelayConfig(), variable_length=True), tokenizer.spec)
    model = Model(strong(lm).eval(), tokenizer, None, [], GenerationConfig(max_frames=24, min_frames=3))
    several = {rows: model.generate(n=rows, seed=5, exact=True) for rows in (1, 2, 3)}
    for i in range(3):
        chunks = list(model.stream(seed=5 + i))
        assert all(chunk.shape[1] and chunk.shape[1] % HOP == 0 for chunk in chunks)
        for rows, result in several.items():
            assert rows <= i or torch.equal(torch.cat(chunks, dim=1), result.media[i])
    prompt = several[1].codes[0, :, :3]
    for more in ({"prompt": prompt}, {"num_frames": 11}):
        chunks = list(model.stream(seed=2, **more))
        assert torch.equal(torch.cat(chunks, dim=1), model.generate(seed=2, **more).media[0])
