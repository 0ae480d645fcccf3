"""A stream equals the whole, sample for sample, whatever network decodes it, causal or not, and whatever was asked."""

import pytest
import torch
from test_audio_networks import HOP, PARTS, tokenizer_of
from tiny_models import save_tiny_models, strong

import tessera
from tessera.generate.model import Model
from tessera.lm.config import LMConfig
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.patterns.pattern import DelayConfig


@pytest.mark.sample(1)
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


RULES = dict(ras=6, ras_tau=0.3, repetition_penalty=1.3, end_bias=-1.0, max_silence=0.004, top_k=5)
VOICE = torch.rand(1, 16 * 5 + 3, generator=torch.Generator().manual_seed(0)) - 0.5
CALLS = {
    "text": ("tones", {"text": "a"}),
    "longer text": ("tones", {"text": "some words"}),
    "every rule": ("tones", {"text": "a", "max_frames": 30, **RULES}),
    "guided label": ("voices", {"text": "one", "label": "star", "guidance": 2.0}),
    "voice": ("clones", {"text": "a", "label": 1, "voice": VOICE}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.mark.sample(1)
@pytest.mark.parametrize("call", CALLS)
def test_a_stream_of_what_was_asked_equals_the_whole(call, folder):
    name, asked = CALLS[call]
    model = tessera.load(folder / name, device="cpu")
    for seed in range(2):
        whole = model.generate(**asked, seed=seed)
        chunks = list(model.stream(**asked, seed=seed))
        assert len(chunks) > 1 or whole.lengths[0] < 10
        assert all(chunk.dtype == torch.float32 and chunk.shape[0] == 1 and chunk.shape[1] for chunk in chunks)
        assert torch.equal(torch.cat(chunks, dim=1), whole.media[0])
        assert torch.equal(whole.media[0], model.tokenizer.decode(whole.codes)[0])
