"""Configs at random, odd sizes included: each is refused in one line, or makes a model that computes, learns and
generates."""

import random
from dataclasses import replace

import pytest
import torch
from short_calls import fill_codes, generate_codes, generate_scales

from tessera.configs.schema import ConfigError, check_config
from tessera.generate.decoding import generate_codes as entry
from tessera.generate.requests.request import Request, StreamPrompt
from tessera.generate.requests.settings import Length
from tessera.lm.conditioning.batch import ConditionBatch
from tessera.lm.config import LMConfig
from tessera.lm.models.masked import MaskedConfig, MaskedLM
from tessera.lm.models.next_scale import NextScaleConfig, NextScaleLM
from tessera.lm.models.registry import make_lm
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import ScalesConfig, VQConfig
from tessera.tokenize.spec import AudioGeometry, ImageGeometry, TokenSpec
from tessera.tokenize.tokenizer import make_tokenizer

KINDS = {"causal": LMConfig, "masked": MaskedConfig, "next_scale": NextScaleConfig}


def some(draw, **choices):
    """Some of the settings, each one of its values."""
    return {name: draw.choice(values) for name, values in choices.items() if draw.random() < 0.5}


def random_head(draw):
    depth = some(
        draw, width=[8, 9, 12, 15, 30], layers=[1, 2], heads=[1, 2, 3, 5], kv_heads=[1, 2, 3], ffn=[8, 9, 33],
        first=["depth", "backbone"], output=["own", "shared"], dropout=[0.3], trained_share=[0.01, 0.5],
        head_dim=[2, 5, 16], qk_norm=[True], norm_eps=[0.5], projection=["affine", "none"],
        positions=[{"kind": "none"}, {"kind": "rope", "base": 5.0, "scaling": {"kind": "llama3", "factor": 2}}],
    )  # fmt: skip
    return draw.choice(
        [
            {"kind": "parallel"},
            {"kind": "flat", **some(draw, output=["own", "shared"])},
            {"kind": "depth", **depth, **some(draw, input=["embedding", "codes", "projected", "backbone"])},
            {"kind": "factor", "sizes": draw.choice([[2, 4], [4, 2], [3, 3], [2, 2, 2]]), **depth},
            {"kind": "bits", **some(draw, groups=[1, 2, 3, 5])},
        ]
    )


def random_input(draw):
    return draw.choice(
        [
            {"kind": "embedding"},
            {"kind": "codes", **some(draw, combine=["sum", "concat"])},
            {"kind": "factor", "sizes": draw.choice([[2, 4], [3, 3]])},
            {"kind": "bits"},
        ]
    )


def random_conditions(draw):
    joins, dropout = ["prefix", "cross"], {"dropout": draw.choice([0.0, 0.5])}
    every = [
        {"kind": "label", "classes": 3, "join": draw.choice([*joins, "sum"]), **dropout},
        {
            "kind": "text", "text": {"kind": "bytes"}, "vocab_size": 11, "join": draw.choice(joins),
            "layers": draw.choice([0, 1]), **dropout,
        },
        {
            "kind": "embedding", "width": draw.choice([1, 5, 18]), "join": draw.choice(joins), **dropout,
            **some(draw, projection=["linear", "none"], norm=["rms", "none"], null=["zero"], mask=["none"]),
        },
        {
            "kind": "codes", "max_frames": 3, "join": draw.choice(joins), "layers": draw.choice([0, 1]), **dropout,
            **({"input": random_input(draw)} if draw.random() < 0.5 else {}),
        },
    ]  # fmt: skip
    return draw.sample(every, draw.choice([0, 1, 1, 2]))


def random_config(draw, kind):
    arrangements = [
        {"kind": "parallel"}, {"kind": "delay"}, {"kind": "delay", "delays": draw.choice([[0, 2], [1, 0, 3], [0]])},
        {"kind": "flat"}, {"kind": "coarse_first"}, {"kind": "partial_flat", "groups": [0, 1]},
    ]  # fmt: skip
    ropes = [
        {"kind": "time", **some(draw, base=[1.5, 1e6])}, *[{"kind": "sinusoidal"}] * 3,
        {"kind": "grid", **some(draw, columns=[1, 3], before=["zero", "count_back"])},
    ]  # fmt: skip
    stream = {"text": {"kind": "bytes"}, "vocab_size": 11, **some(draw, predict=["text", "end"], loss=["all"])}
    causal = some(
        draw, arrangement=arrangements, variable_length=[True], window=[1, 2, 7],
        ahead=[{"steps": 1}, {"steps": 4}],
    )  # fmt: skip
    if draw.random() < 0.2:
        causal |= {"text_stream": stream, "variable_length": True}
    masked = some(draw, masking=[{"unit": "frame"}, {"share": "uniform"}, {"everything": 1.0}])
    return {
        "kind": kind,
        "width": draw.choice([4, 8, 8, 12, 12, 16, 20, 24, 9, 10, 15, 27, 30]),
        "heads": draw.choice([1, 1, 1, 2, 3]),
        "layers": draw.choice([1, 1, 2]),
        **some(
            draw, kv_heads=[1, 1, 1, 2], ffn=[8, 9, 31], feed_forward=["gelu", "swiglu"], norm=["rms", "layer"],
            qk_norm=[True], dropout=[0.4], rope=ropes, norm_eps=[1e-12, 0.5],
        ),
        **(causal if kind == "causal" else masked if kind == "masked" else {}),
        **({"head": random_head(draw)} if draw.random() < 0.4 else {}),
        **({"start": "condition", "loss_weights": [1.0, 2.0]} if draw.random() < 0.1 else {}),
        **({"input": random_input(draw)} if draw.random() < 0.4 and kind != "next_scale" else {}),
        "conditions": random_conditions(draw),
    }  # fmt: skip


def random_spec(draw):
    cardinalities = draw.choice([(8,), (8, 8), (9, 9), (2, 16), (5, 7, 1), (1,), (8, 8, 8)])
    geometry = draw.choice(
        [
            AudioGeometry(sample_rate=8000, samples_per_frame=4),
            ImageGeometry(height=4, width=6, rows=2, columns=3),
            ImageGeometry(height=4, width=4, rows=1, columns=1),
        ]
    )
    return TokenSpec(name="tiny", cardinalities=cardinalities, geometry=geometry, fingerprint="0" * 64)


def batch_for(config, spec):
    kinds = {condition.kind: condition for condition in config.conditions}
    prompt = torch.zeros(spec.num_codebooks, 2, dtype=torch.long)
    given = kinds.get("embedding")
    return ConditionBatch.make(
        [0, None] if "label" in kinds else None,
        [[1, 2], None] if "text" in kinds else None,
        [torch.ones(2, given.width), None] if given else None,
        [None, prompt] if "codes" in kinds else None,
        melodies=[None, torch.ones(2, kinds["melody"].chroma.bins)] if "melody" in kinds else None,
    )


def try_out(config, spec, tokenizer):
    """Make a model and use it in every way."""
    vectors = torch.randn(spec.num_codebooks, max(spec.cardinalities), 3) if config.needs_code_vectors else None
    lm = make_lm(config, spec, vectors, None, None if tokenizer is None else tokenizer.quantizer)
    batch = batch_for(lm.config, spec)
    T = spec.geometry.num_frames if isinstance(spec.geometry, ImageGeometry) else 5
    codes = torch.zeros(2, spec.num_codebooks, T, dtype=torch.long)
    lengths = torch.tensor([T, max(1, T - 2)]) if isinstance(spec.geometry, AudioGeometry) else None
    if lm.text_stream is not None:
        try_out_stream(lm, codes, batch)
        return
    lm.train().loss(codes, lengths, batch).loss.backward()
    lm.eval()
    if isinstance(lm, MaskedLM):
        hidden = torch.ones(2, len(lm.head.sub_tokens), T, dtype=torch.bool)
        assert not lm(codes, hidden, lengths, batch).isnan().any()
        made = fill_codes(lm, batch, [0, 1], torch.full((2,), T))
    elif isinstance(lm, NextScaleLM):
        assert not lm(codes, None, batch).logits.isnan().any()
        made = generate_scales(lm, batch, [0, 1])
    else:
        assert not lm(codes, lengths, batch).logits.isnan().any()
        made = generate_codes(lm, batch, [0, 1], Length(T, fixed=True)).codes
    assert made.shape == codes.shape
    assert all(0 <= int(made[:, k].min()) and int(made[:, k].max()) < V for k, V in enumerate(spec.cardinalities))


def try_out_stream(lm, codes, batch):
    """The same for a model of text and audio, which speaks and, if it can, writes."""
    stream = lm.text_stream
    tasks = {"speak": stream.speak([1, 2], codes[0]), "write": stream.write(codes[0], [1, 2])}
    for task in ("speak",) if stream.unpredicted else tasks:
        given = replace(batch, given=torch.full((2,), 2 if task == "speak" else codes.shape[2]))
        sequences = tasks[task].expand(2, -1, -1)
        lm.train().loss(sequences, None, given).loss.backward()
        assert not lm.eval()(sequences, None, given).logits.isnan().any()
        begun = stream.speak([1, 2], codes[0, :, :0]) if task == "speak" else stream.write(codes[0], [])
        prompt = StreamPrompt.make(task, [begun] * 2, 0, 4)
        made = entry.generate_codes(lm, Request(batch, [0, 1], Length(int(prompt.longest[0]), 0), stream=prompt))
        frames = 4 if task == "speak" else codes.shape[2]
        assert made.codes.shape[1] == codes.shape[1] and int(made.lengths.max()) <= frames


def make_scales(draw):
    rows, columns = draw.choice([(2, 2), (3, 4)])
    settings = {"name": "tiny", "height": rows, "width": columns, "channels": 1, "downsamplings": 0, "latent_dim": 3}
    scales = ScalesConfig(sizes=((1, 1), (rows, columns)), convolutions=1, quantizer=VQConfig(size=8))
    return make_tokenizer(ImageTokenizerConfig(**settings, features=4, blocks=1, quantizer=scales))


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", range(4))
def test_a_config_is_refused_in_one_line_or_works(kind, part, count=25):
    made = 0
    for seed in range(part * count, (part + 1) * count):
        draw = random.Random(f"{kind} {seed}")
        torch.manual_seed(seed)
        tokenizer = make_scales(draw) if kind == "next_scale" else None
        spec = random_spec(draw) if tokenizer is None else tokenizer.spec
        data = random_config(draw, kind)
        try:
            config = check_config(data, KINDS[kind], "lm")
            try_out(config, spec, tokenizer)
            made += 1
        except ConfigError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
        except Exception as error:
            raise AssertionError(f"seed {seed}: {data} of {spec.cardinalities} {spec.geometry}") from error
    assert made >= count // 8, "most of what is tried is refused"
