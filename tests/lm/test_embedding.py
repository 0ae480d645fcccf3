"""The condition of given vectors: what is seen of them, their null, and what is refused."""

import pytest
import torch
from small_models import make_codes, make_config, make_lm

from tessera.configs.schema import ConfigError
from tessera.lm.conditioning.base import ConditionContext
from tessera.lm.conditioning.registry import ConditionBatch, Conditioner, EmbeddingConditionConfig


def model_with(**settings):
    return make_lm(make_config(conditions=(EmbeddingConditionConfig(width=6, **settings),)))


def batch(*lengths, longest=None):
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(len(lengths), longest or max(lengths), 6, generator=generator)
    return ConditionBatch(embedding=vectors, embedding_lengths=torch.tensor(lengths))


def test_what_stands_in_the_padding_does_not_matter():
    lm, codes, given = model_with(mask="none"), make_codes(2, 4), batch(3, 1)
    other = given.embedding.clone()
    other[1, 1:] = 7.0
    one = lm(codes, None, given).logits
    assert one.equal(lm(codes, None, ConditionBatch(embedding=other, embedding_lengths=given.embedding_lengths)).logits)


@pytest.mark.parametrize("mask", ["padding", "none"])
def test_only_an_unmasked_row_depends_on_how_far_it_is_padded(mask):
    lm, codes = model_with(mask=mask), make_codes(1, 4)
    short = batch(2)
    padded = torch.nn.functional.pad(short.embedding, (0, 0, 0, 3), value=5.0)
    long = ConditionBatch(embedding=padded, embedding_lengths=short.embedding_lengths)
    change = (lm(codes, None, short).logits - lm(codes, None, long).logits)[:, 0, :, :7].detach().abs().max()
    assert change < 1e-5 if mask == "padding" else change > 1e-3


def test_the_zero_null_reads_as_no_cross_attention_at_all():
    lm, codes = model_with(null="zero", norm="none"), make_codes(1, 4)
    null = lm(codes, None, batch(2).null()).logits
    for block in lm.transformer.blocks:
        block.cross.out.weight.data.zero_()
    assert lm(codes, None, batch(2)).logits.equal(null)


def test_a_model_without_a_layer_reads_the_vectors_as_they_are():
    config = EmbeddingConditionConfig(width=6, projection="none", norm="none", null="zero")
    given = batch(2, 2)
    assert Conditioner([config], ConditionContext(6, 1))(given).memory.equal(given.embedding)
    with pytest.raises(ConfigError, match="embedding.width is 6 and the model's width 8"):
        Conditioner([config], ConditionContext(8, 1))


def test_rows_are_laid_out_from_a_list():
    made = ConditionBatch.make(embeddings=[torch.ones(2, 6), None, torch.ones(3, 6)])
    assert made.embedding.shape == (3, 3, 6)
    assert made.embedding_lengths.tolist() == [2, 0, 3]
    assert made.embedding.sum(dim=(1, 2)).tolist() == [12, 0, 18]
    with pytest.raises(
        ValueError, match=r"the same width, at least one of them not empty, found \[\[2, 6\], " r"\[2, 5\]\]"
    ):
        ConditionBatch.make(embeddings=[torch.ones(2, 6), torch.ones(2, 5)])
    with pytest.raises(ValueError, match="1 labels but 2 embeddings"):
        ConditionBatch.make(labels=[1], embeddings=[None, torch.ones(2, 6)])


@pytest.mark.parametrize(
    ("conditions", "error"),
    [
        (
            ConditionBatch(),
            r"on an embedding, but none was given; pass one \(embedding_lengths 0 for a row",
        ),
        (ConditionBatch(embedding=torch.zeros(1, 2, 5)), r"floating point \[B, L, 6\], found .* \[1, 2, 5\]"),
        (ConditionBatch(embedding=torch.zeros(1, 2, 6)), r"embedding_lengths must be long \[1\]"),
        (batch(3, longest=2), "must be 0 to the 2 vectors given, found 3 to 3"),
    ],
)
def test_other_vectors_are_refused(conditions, error):
    with pytest.raises(ValueError, match=error):
        model_with()(make_codes(1, 4), None, conditions)
