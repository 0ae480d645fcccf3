"""The decode loops, called with the parts of a request."""

from tessera.configs.schema import check_config
from tessera.generate.decoding import generate_codes as entry
from tessera.generate.decoding import masked, next_scale
from tessera.generate.decoding.loop import DecodeLoop
from tessera.generate.decoding.speculative import SpeculativeLoop
from tessera.generate.requests.request import Request, choose
from tessera.generate.requests.settings import Length
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.generation_config import GenerationConfig

FRAME = 1 / 4000
"""Seconds of a frame of the tiny audio models."""


def request_of(conditions, seeds, length, sampling=None, guidance=1.0, prompt=None, **settings) -> Request:
    """A request; `sampling` is a GenerationConfig or its settings, which guidance and settings are added to."""
    if isinstance(sampling, dict):
        sampling = check_config(sampling, GenerationConfig, "generate")
    config = choose(sampling, {"guidance": guidance, **settings})
    return Request(conditions or ConditionBatch(), list(seeds), length, config, prompt)


def filters_only(config):
    """Without the rules about earlier codes."""
    return GenerationConfig(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, min_p=config.min_p)


def generate_codes(lm, *parts, exact=False, on_progress=None, **settings):
    return entry.generate_codes(lm, request_of(*parts, **settings), exact, on_progress)


def warm_up(lm, conditions, length, *parts, num_rows=None, **settings):
    rows = num_rows or conditions.num_rows or 1
    entry.warm_up(lm, request_of(conditions, [0] * rows, length, *parts, **settings))


def decode_loop(lm, *parts, step="eager", **settings) -> DecodeLoop:
    return DecodeLoop(lm, request_of(*parts, step=step, **settings))


def speculative_loop(lm, *parts, draft=1, step="eager", **settings) -> SpeculativeLoop:
    return SpeculativeLoop(lm, request_of(*parts, draft=draft, step=step, **settings))


def masked_parts(conditions, seeds, lengths, filling=None, sampling=None, guidance=1.0, prompt=None, coarse=None):
    """(request, lengths, coarse) of a masked model; `filling` holds the settings of its passes."""
    longest = int(lengths.max()) if lengths.numel() else 1
    request = request_of(conditions, seeds, Length(longest, fixed=True), sampling, guidance, prompt, **(filling or {}))
    return request, lengths, coarse


def fill_codes(lm, *parts, exact=False, on_progress=None, **settings):
    return masked.fill_codes(lm, *masked_parts(*parts, **settings), exact, on_progress)


def fill_in_passes(lm, *parts, **settings):
    return masked.fill_in_passes(lm, *masked_parts(*parts, **settings))


def scale_request(lm, conditions, seeds, sampling=None, guidance=1.0, prompt=None, **settings):
    length = Length(sum(lm.counts), fixed=True)
    return request_of(conditions, seeds, length, sampling, guidance, prompt, **settings)


def generate_scales(lm, *parts, exact=False, on_progress=None, num_scales=None, **settings):
    return next_scale.generate_scales(lm, scale_request(lm, *parts, **settings), exact, on_progress, num_scales)


def scale_by_scale(lm, *parts, **settings):
    return next_scale.scale_by_scale(lm, scale_request(lm, *parts, **settings))
