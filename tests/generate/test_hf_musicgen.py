"""Greedy generation with a MusicGen checkpoint gives the tokens that transformers gives."""

from types import SimpleNamespace

import pytest
import torch
from short_calls import generate_codes
from tiny_musicgen import D, make_bare, make_composite, make_states

from tessera.generate.requests.settings import Length
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.public.musicgen import load_musicgen

FRAMES = 64
GREEDY = {"do_sample": False, "num_return_sequences": 1, "max_length": FRAMES + 4}


def ours(folder, states, lengths, guidance):
    lm = load_musicgen(folder)
    conditions = ConditionBatch(embedding=states, embedding_lengths=lengths)
    seeds = list(range(len(states)))
    return generate_codes(
        lm, conditions, seeds, Length(FRAMES, fixed=True), GenerationConfig(temperature=0), guidance
    ).codes


def check_same(found, expected):
    assert expected.shape == (len(found), 4, FRAMES)
    assert found.equal(expected)
    assert len({tuple(column) for column in expected[0].T.tolist()}) > 8  # not one frame for ever


@torch.no_grad()
def greedy(model, states, mask, guidance):
    """The likeliest codes [rows, 4, FRAMES] by transformers' forward and delays: every step reads the whole sequence.

    Not by its generate, which for a decoder alone hides the start (it is the pad) unless told otherwise in ways that
    differ from version to version.
    """
    pad, rows = model.config.pad_token_id, len(states)
    ids, pattern = model.build_delay_pattern_mask(
        torch.full((rows * 4, 1), pad), pad_token_id=pad, max_length=GREEDY["max_length"]
    )
    for _ in range(GREEDY["max_length"] - 1):
        read = model.apply_delay_pattern_mask(ids, pattern)
        logits = model(read, encoder_hidden_states=states, encoder_attention_mask=mask, use_cache=False).logits[:, -1]
        if guidance != 1:
            none = torch.zeros_like(states), torch.zeros_like(mask)
            without = model(read, encoder_hidden_states=none[0], encoder_attention_mask=none[1], use_cache=False)
            without = without.logits[:, -1]
            logits = without + guidance * (logits - without)
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    ids = model.apply_delay_pattern_mask(ids, pattern)
    return ids[pattern == -1].view(rows, 4, FRAMES)


@pytest.mark.sample(1)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_decoder_alone(rows, guidance, tmp_path):
    model = make_bare(seed=1)
    model.save_pretrained(tmp_path)
    states, lengths, mask = make_states(rows, D)
    check_same(ours(tmp_path, states, lengths, guidance), greedy(model, states, mask, guidance))


@pytest.mark.sample(1)
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
