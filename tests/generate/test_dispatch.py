"""Every kind of language model has a decoder, and its decode plan refuses what the decoder cannot do."""

from dataclasses import replace
from typing import get_args

import pytest

from tessera.generate.decoding.dispatch import DECODERS, check_plan
from tessera.generate.requests.request import Request
from tessera.generate.requests.settings import Length
from tessera.lm.conditioning.batch import ConditionBatch
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.models.base import DecodePlan, DecoderName, LanguageModel
from tessera.lm.models.causal import TokenLM
from tessera.lm.models.coarse_to_fine import CoarseToFine
from tessera.lm.models.masked import PLAN, MaskedLM
from tessera.lm.models.next_scale import NextScaleLM


def test_every_kind_names_a_decoder_of_the_table():
    plans = {TokenLM: TokenLM.decode_plan, MaskedLM: PLAN, NextScaleLM: NextScaleLM.decode_plan}
    plans[CoarseToFine] = CoarseToFine.decode_plan
    assert all(issubclass(kind, LanguageModel) for kind in plans)
    assert {plan.decoder for plan in plans.values()} == set(DECODERS) == set(get_args(DecoderName))
    assert [kind for kind, plan in plans.items() if plan.in_order] == [TokenLM]
    assert not issubclass(MaskedLM, TokenLM) and not issubclass(NextScaleLM, TokenLM)


@pytest.mark.parametrize(
    "plan, length, settings, message",
    [
        (PLAN, Length(9, 0, True), {"draft": 2}, "draft was set, but a masked model does not decode step by step"),
        (PLAN, Length(9, 0, True), {"cache": "int8"}, "cache was set, but a masked model does not decode step by step"),
        (PLAN, Length(9, 0, False), {}, "a masked model needs the number of frames; pass num_frames"),
        (replace(PLAN, incomplete="no labels"), Length(9, 0, True), {"draft": 2}, "no labels"),
        (NextScaleLM.decode_plan, Length(9, 0, True), {"draft": 2}, "draft was set, but a next-scale model generates"),
        (DecodePlan("autoregressive"), Length(9, 0, False), {"draft": 2, "cache": "int8"}, None),
    ],
)
def test_a_plan_refuses(plan, length, settings, message):
    request = Request(ConditionBatch(), [0], length, GenerationConfig(**settings))
    if message is None:
        check_plan(plan, request)
    else:
        with pytest.raises(ValueError, match=message):
            check_plan(plan, request)
