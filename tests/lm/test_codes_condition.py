"""The condition `codes`: what is seen of a prompt, whose weights read it, what it is good for, what is refused."""

import copy
from dataclasses import replace

import pytest
import torch
from small_models import CONDITIONS, make_codes, make_config, make_lm, make_spec

from tessera.configs.schema import ConfigError, check_config
from tessera.lm.checkpoints.model_directory import load_model, save_model
from tessera.lm.conditioning.registry import CodesConditionConfig, ConditionBatch
from tessera.lm.config import LMConfig
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.layers.input_embedding import CodesInputConfig, EmbeddingInputConfig
from tessera.lm.models.causal import TokenLM
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import VQConfig
from tessera.tokenize.tokenizer import make_tokenizer

KINDS = [name for name in CONDITIONS if "codes" in name]
kinds = pytest.mark.parametrize("name", KINDS)


def model_with(**settings):
    return make_lm(make_config(conditions=(CodesConditionConfig(**{"max_frames": 5, **settings}),)))


def batch(*lengths, longest=None):
    return ConditionBatch(
        codes=make_codes(len(lengths), longest or max(lengths)), codes_lengths=torch.tensor(lengths, dtype=torch.long)
    )


def lm_of(name):
    return make_lm(make_config(conditions=CONDITIONS[name]))


def with_others(lm, given):
    return lm.conditions.with_nulls(given, given.num_rows)


@kinds
def test_padding_changes_nothing_whatever_stands_in_it(name):
    lm, codes = lm_of(name), make_codes(3, 4)
    short = batch(3, 1, 0)
    before = lm(codes, None, with_others(lm, short)).logits
    for value in (0, 3, 10**6, -5):
        long = torch.cat([short.codes, torch.full((3, 3, 2), value)], dim=2)
        long[1, :, 1:] = value
        long[2] = value
        given = ConditionBatch(codes=long, codes_lengths=short.codes_lengths)
        after = lm(codes, None, with_others(lm, given)).logits
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


@kinds
def test_every_code_of_a_prompt_matters_and_its_order(name):
    lm, codes, given = lm_of(name), make_codes(1, 4), batch(4)
    before = lm(codes, None, with_others(lm, given)).logits

    def change(prompt):
        other = with_others(lm, replace(given, codes=prompt))
        return float((lm(codes, None, other).logits - before).detach()[:, 0, :, :7].abs().max())

    for k in range(3):
        for t in range(4):
            prompt = given.codes.clone()
            prompt[0, k, t] = (prompt[0, k, t] + 1) % 5
            assert change(prompt) > 1e-5
    assert change(given.codes.flip(2)) > 1e-5
    assert change(given.codes.clone()) == 0


def test_a_prompt_is_not_the_beginning_of_the_codes():
    """Read by the same tables as the model's own codes, but told from them by the marker."""
    lm, codes, given = model_with(), make_codes(1, 4), batch(4)
    before = lm(codes, None, given).logits
    with torch.no_grad():
        lm.conditions.parts["codes"].marker.zero_()
    assert float((lm(codes, None, given).logits - before).detach().abs()[:, 0, :, :7].max()) > 1e-4


@pytest.mark.parametrize("own", [EmbeddingInputConfig(), CodesInputConfig(), CodesInputConfig(combine="sum")])
def test_the_models_own_input_is_read_with_its_weights_and_another_with_others(own):
    shared, apart = model_with(), model_with(input=own)
    names = {name for name in shared.state_dict() if name.startswith("conditions.")}
    assert names == {"conditions.parts.codes.marker", "conditions.parts.codes.null"}
    assert any(name.startswith("conditions.parts.codes.input.") for name in apart.state_dict())
    codes = make_codes(1, 4)
    for lm, read in ((shared, shared.input), (apart, apart.conditions.parts["codes"].input)):
        prompt = batch(3)
        tokens, mask = lm.conditions.parts["codes"](prompt)
        torch.testing.assert_close(tokens, read(prompt.codes) + lm.conditions.parts["codes"].marker)
        assert mask is None
        twin = copy.deepcopy(lm)
        with torch.no_grad():
            for parameter in twin.input.parameters():
                parameter.zero_()
        changed = not twin.conditions.parts["codes"](prompt)[0].equal(tokens)
        assert changed == (lm is shared), "a copy reads with its own weights"
        assert lm.conditions.parts["codes"](prompt)[0].equal(tokens)
        assert lm(codes, None, prompt).logits.shape == twin(codes, None, prompt).logits.shape


@pytest.mark.parametrize("own", [None, CodesInputConfig()])
def test_it_is_saved_and_read_back(own, tmp_path):
    torch.manual_seed(0)
    tokenizer = make_tokenizer(
        ImageTokenizerConfig(
            name="tiny", height=4, width=6, channels=1, features=8, blocks=1, latent_dim=8, quantizer=VQConfig(size=9)
        )
    )
    config = LMConfig(
        width=16, layers=1, heads=2, conditions=(CodesConditionConfig(max_frames=6, input=own, layers=1),)
    )
    assert config.needs_code_vectors == (own is not None)
    lm = TokenLM(config, tokenizer.spec, tokenizer.vectors() if own else None).eval()
    save_model(tmp_path / "m", lm, tokenizer, None, [], GenerationConfig())
    again = load_model(tmp_path / "m").lm
    codes, given = make_codes(2, 6, (9,)), ConditionBatch.make(codes=[make_codes(1, 4, (9,))[0], None])
    assert again(codes, None, given).logits.equal(lm(codes, None, given).logits)


def test_a_model_learns_to_follow_its_prompt():
    """Two voices use two halves of the codes. With the right prompt the loss is near that of one half, with the wrong
    one far above that of both, and without a prompt between them."""
    lm = make_lm(
        make_config(
            conditions=(CodesConditionConfig(max_frames=4, dropout=0.3),), layers=1, variable_length=False
        ),
        spec=make_spec((6, 6, 6)),
    ).train()  # fmt: skip
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)

    def draw(voices, num_frames):
        return 3 * voices[:, None, None] + torch.randint(3, (len(voices), 3, num_frames), generator=generator)

    for _ in range(40):
        voices = torch.randint(2, (24,), generator=generator)
        optimizer.zero_grad()
        given = ConditionBatch(codes=draw(voices, 3), codes_lengths=torch.randint(1, 4, (24,), generator=generator))
        lm.loss(draw(voices, 1), None, given).loss.backward()
        optimizer.step()
    lm.eval()
    voices = torch.arange(24) % 2
    codes, given = draw(voices, 1), ConditionBatch(codes=draw(voices, 3), codes_lengths=torch.full((24,), 3))

    def first(conditions):
        """Nats of the first codebook of the first frame, before anything of the codes is known."""
        return float(lm.loss(codes, None, conditions).per_codebook[0].detach())

    right, wrong, none = first(given), first(replace(given, codes=given.codes.flip(0))), first(given.null())
    assert right < 1.3 and 1.5 < none < 2.2 and wrong > none + 1, (right, none, wrong)  # ln 3 = 1.10, ln 6 = 1.79


def test_rows_are_laid_out_from_a_list():
    made = ConditionBatch.make(codes=[torch.ones(3, 2).long(), None, torch.ones(3, 4).long()])
    assert made.codes.shape == (3, 3, 4) and made.codes_lengths.tolist() == [2, 0, 4]
    assert made.codes.sum(dim=(1, 2)).tolist() == [6, 0, 12] and made.num_rows == 3
    assert made.rows(slice(0, 1)).trimmed().codes.shape == (1, 3, 2)
    assert made.rows(slice(1, 2)).trimmed().codes.shape == (1, 3, 1)
    assert made.null().codes_lengths.tolist() == [0, 0, 0] and made.null(["codes"]).codes_lengths.tolist() == [2, 0, 4]
    assert made.followed_by(made.null()).codes_lengths.tolist() == [2, 0, 4, 0, 0, 0]
    with pytest.raises(
        ValueError, match=r"must be \[K, L\], all with the same K, at least one of them not empty, found " r"\[None\]"
    ):
        ConditionBatch.make(codes=[None])
    with pytest.raises(
        ValueError, match=r"all with the same K, at least one of them not empty, found \[\[3, 2\], " r"\[2, 2\]\]"
    ):
        ConditionBatch.make(codes=[torch.ones(3, 2).long(), torch.ones(2, 2).long()])
    with pytest.raises(ValueError, match="1 labels but 2 prompts of codes"):
        ConditionBatch.make(labels=[1], codes=[None, torch.ones(3, 2).long()])


@pytest.mark.parametrize(
    ("conditions", "error"),
    [
        (ConditionBatch(), r"on a prompt of codes, but none was given; pass one \(codes_lengths 0 for a row"),
        (ConditionBatch(codes=make_codes(1, 4)[:, :2]), r"must be long \[B, 3, L\], .* found torch.int64 \[1, 2, 4\]"),
        (ConditionBatch(codes=make_codes(1, 4)[:, 0]), r"must be long \[B, 3, L\], .* found torch.int64 \[1, 4\]"),
        (ConditionBatch(codes=make_codes(1, 4).float()), r"must be long \[B, 3, L\], .* found torch.float32"),
        (
            ConditionBatch(codes=make_codes(1, 4)),
            r"codes_lengths must be long \[1\], one for each row \(0: no prompt\)",
        ),
        (batch(3, longest=2), "codes_lengths must be 0 to the 2 frames given, found 3 to 3"),
        (batch(6), "has 6 frames, the model reads at most 5; give the first 5"),
        (replace(batch(3), codes=make_codes(1, 3) + 7), "codebook 0 of a prompt of codes holds codes 0 to 6, found"),
        (replace(batch(3), codes=make_codes(1, 3) - 9), "codebook 0 of a prompt of codes holds codes 0 to 6, found -"),
    ],
)
def test_other_prompts_are_refused(conditions, error):
    with pytest.raises(ValueError, match=error):
        model_with()(make_codes(1, 4), None, conditions)


def test_a_model_without_it_refuses_a_prompt():
    with pytest.raises(ValueError, match="a prompt of codes was given, but the model is conditioned on nothing"):
        make_lm(make_config())(make_codes(1, 4), None, batch(2))


def test_bad_configs():
    with pytest.raises(ConfigError, match=r"conditions.0.codes.max_frames: Field required"):
        check_config({"conditions": [{"kind": "codes"}]}, LMConfig)
    with pytest.raises(ConfigError, match="pass code_vectors"):
        TokenLM(make_config(conditions=(CodesConditionConfig(max_frames=3, input=CodesInputConfig()),)), make_spec())
