"""Greedy generation with a MusicGen checkpoint gives the tokens that transformers gives."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tessera.generate.loop import Length, generate_codes
from tessera.generate.sampling import Sampling
from tessera.lm.conditions import ConditionBatch
from tessera.lm.hf_musicgen import load_musicgen

sys.path.insert(0, str(Path(__file__).parent.parent / "lm"))
from tiny_musicgen import D, make_bare, make_composite, make_states, transformers

FRAMES = 64
GREEDY = {"do_sample": False, "num_return_sequences": 1, "max_length": FRAMES + 4}


def ours(folder, states, lengths, guidance):
    lm = load_musicgen(folder)
    conditions = ConditionBatch(embedding=states, embedding_lengths=lengths)
    seeds = list(range(len(states)))
    return generate_codes(lm, conditions, seeds, Length(FRAMES, fixed=True), Sampling(temperature=0), guidance).codes


def check_same(found, expected):
    assert expected.shape == (len(found), 4, FRAMES)
    assert found.equal(expected)
    assert len({tuple(column) for column in expected[0].T.tolist()}) > 8  # not one frame for ever


@pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24),
    reason="from 5.24 on generate of the decoder alone takes no cache, and without one it hides the start",
)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_decoder_alone(rows, guidance, tmp_path):
    model = make_bare(seed=1)
    model.save_pretrained(tmp_path)
    states, lengths, mask = make_states(rows, D)
    given = (states, mask)
    if guidance != 1:
        given = [torch.cat([x, torch.zeros_like(x)]) for x in given]
    # By itself generate would not let the start be seen, which is the pad, and would keep the keys of the states among
    # those of the codes.
    pad = model.config.pad_token_id
    cache = transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())
    expected = model.generate(
        torch.full((rows * 4, 1), pad),
        attention_mask=torch.ones(rows, 1, dtype=torch.long),
        encoder_hidden_states=given[0],
        encoder_attention_mask=given[1],
        past_key_values=cache,
        guidance_scale=guidance if guidance != 1 else None,
        pad_token_id=pad,
        decoder_start_token_id=pad,
        **GREEDY,
    )
    check_same(ours(tmp_path, states, lengths, guidance), expected)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_whole_model_from_text(rows, guidance, tmp_path, monkeypatch):
    model = make_composite()
    model.save_pretrained(tmp_path)
    text = torch.randint(2, 30, (rows, 5), generator=torch.Generator().manual_seed(5))
    lengths = torch.tensor([5, 3, 1, 4][:rows])
    mask = (torch.arange(5) < lengths[:, None]).long()
    played = []

    def decode(codes, *_, **__):
        played.append(codes[0])
        return SimpleNamespace(audio_values=None)

    monkeypatch.setattr(model.audio_encoder, "decode", decode)
    pad = model.config.decoder.pad_token_id
    model.generate(
        text * mask,
        attention_mask=mask,
        guidance_scale=guidance if guidance != 1 else None,
        pad_token_id=pad,
        decoder_start_token_id=pad,
        **GREEDY,
    )
    with torch.no_grad():
        states = model.text_encoder(text * mask, attention_mask=mask).last_hidden_state
    check_same(ours(tmp_path, states, lengths, guidance), played[0])
