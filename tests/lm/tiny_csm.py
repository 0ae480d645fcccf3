"""Tiny CSM models of transformers with random weights, their text tokenizer, and what transformers makes of a text.

transformers imports a model's file when the class is first asked for, so only the tests that use one pay for it.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

CODES, K = 16, 4
SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|audio_eos|>", "<|pad|>")
BACKBONE_ROPE = {"factor": 32.0, "low_freq_factor": 0.125, "high_freq_factor": 0.5}
BACKBONE_ROPE |= {"original_max_position_embeddings": 1024, "rope_type": "llama3"}
DEPTH_ROPE = {"factor": 32.0, "low_freq_factor": 0.001953125, "high_freq_factor": 0.0078125}
DEPTH_ROPE |= {"original_max_position_embeddings": 16, "rope_type": "llama3"}
CODEC = {
    "num_filters": 2, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4,
    "num_key_value_heads": 2, "intermediate_size": 16, "codebook_size": CODES, "codebook_dim": 4,
    "vector_quantization_hidden_dimension": 4, "upsample_groups": 8, "upsampling_ratios": [4, 2], "sampling_rate": 8000,
}  # fmt: skip
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
DEPTH_SIZES = SIZES | {"hidden_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}


@cache
def make_text() -> tokenizers.Tokenizer:
    """A tokenizer of bytes in the form of Llama 3's, with CSM's tokens around a text."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(set("".join(map(chr, range(32, 127)))))
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=110, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the cat said hello to the other cat, and the dog said no"] * 3, trainer)
    tokenizer.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    ids = [(name, tokenizer.token_to_id(name)) for name in SPECIALS[:2]]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{SPECIALS[0]}:0 $A:0 {SPECIALS[1]}:0",
        pair=f"{SPECIALS[0]}:0 $A:0 {SPECIALS[1]}:0 {SPECIALS[0]}:1 $B:1 {SPECIALS[1]}:1",
        special_tokens=ids,
    )
    return tokenizer


def make_config(books=K, sizes=SIZES, depth=DEPTH_SIZES, **settings) -> transformers.CsmConfig:
    text = make_text()
    return transformers.CsmConfig(
        num_codebooks=books,
        vocab_size=CODES + 3,
        codebook_pad_token_id=CODES + 2,
        text_vocab_size=text.get_vocab_size() + 3,
        bos_token_id=text.token_to_id(SPECIALS[0]),
        audio_token_id=text.token_to_id(SPECIALS[2]),
        audio_eos_token_id=text.token_to_id(SPECIALS[3]),
        pad_token_id=text.token_to_id(SPECIALS[4]),
        rope_scaling=dict(BACKBONE_ROPE),
        codec_config=transformers.MimiConfig(**CODEC, num_quantizers=books),
        depth_decoder_config=transformers.CsmDepthDecoderConfig(
            num_codebooks=books,
            backbone_hidden_size=sizes["hidden_size"],
            vocab_size=CODES + 3,
            rope_scaling=dict(DEPTH_ROPE),
            max_position_embeddings=books + 1,
            **depth,
        ),
        **(dict(sizes) | settings),
    )


def make_csm(seed=0, **settings) -> transformers.CsmForConditionalGeneration:
    """With weights that make some codes clearly likelier than others, code 0 above all, so that clips end."""
    torch.manual_seed(seed)
    model = transformers.CsmForConditionalGeneration(make_config(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("codec_model."):
                continue
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
            else:
                parameter.normal_(std=0.4)
        model.lm_head.weight[0] *= 2.0
        model.depth_decoder.codebooks_head.weight[:, :, 0] *= 2.0
        for name, buffer in model.codec_model.named_buffers():
            if name.endswith("embed_sum"):
                buffer.normal_()
            elif name.endswith("cluster_usage"):
                buffer.fill_(1.0)
    generation = model.generation_config
    generation.do_sample, generation.temperature, generation.top_k, generation.max_new_tokens = True, 0.9, 50, 40
    depth = model.depth_decoder.generation_config
    depth.do_sample, depth.temperature, depth.top_k = True, 0.9, 50
    return model


def random_csm(seed: int) -> transformers.CsmForConditionalGeneration:
    """A model of random sizes."""
    draw = random.Random(seed)

    def stack():
        groups, per_group, head = draw.choice([1, 2]), draw.choice([1, 2, 3]), draw.choice([4, 8])
        sizes = {"num_attention_heads": groups * per_group, "num_key_value_heads": groups, "head_dim": head}
        sizes |= {"hidden_size": 8 * draw.randint(2, 4), "intermediate_size": draw.randint(9, 40)}
        return sizes | {"num_hidden_layers": draw.randint(1, 3)}

    return make_csm(seed, books=draw.randint(2, 6), sizes=stack(), depth=stack())


def save_csm_folder(folder: Path, model: transformers.CsmForConditionalGeneration, **settings) -> None:
    """As in the published repository: the model, its text tokenizer and a processor."""
    model.save_pretrained(folder, **settings)
    make_text().save(str(folder / "tokenizer.json"))


def text_of(*texts: str) -> list[list[int]]:
    """Ids of texts between the tokens of begin and end."""
    return [make_text().encode(text).ids for text in texts]


def hidden_input(model, sequence: torch.Tensor) -> torch.Tensor:
    """Input vectors [1, P, D] of one of our sequences [K + 1, P] after the first text id."""
    text, codes, begin = sequence[0], sequence[1:], model.config.bos_token_id
    frames = model.backbone_model.embed_tokens(codes.clamp(max=CODES + 2).t()[None])[0]
    said = model.embed_text_tokens(text.clamp(max=model.config.text_vocab_size - 1))
    vectors = torch.where((text < model.config.text_vocab_size)[:, None], said, frames)
    return torch.cat([model.embed_text_tokens(torch.tensor([begin])), vectors])[None]


class Clip(NamedTuple):
    """A clip of transformers."""

    codes: torch.Tensor
    """[K, T]"""
    samples: torch.Tensor
    """[N]"""
    ended: bool | None
    """None: it was cut after a frame of which only the last code is not 0, where transformers alone stops."""


@torch.no_grad()
def their_clips(model, rows, frames=30, **settings) -> list[Clip]:
    """What transformers makes of each row, decoded greedily together.

    Args:
        rows: for each row its turns, (text ids, samples [N] or None) each; the last has no samples.
    """
    config, turns = model.config, ([], [])
    for row in rows:
        ids, heard = [], []
        for text, samples in row:
            ids += text
            if samples is not None:
                count = len(samples) // (2 * 8)
                ids += [config.audio_token_id] * count + [config.audio_eos_token_id]
                heard.append(samples)
        turns[0].append(ids)
        turns[1].append(heard)
    longest = max(map(len, turns[0]))
    given = torch.tensor([[config.pad_token_id] * (longest - len(ids)) + ids for ids in turns[0]])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in turns[0]])
    if any(turns[1]):
        ends = [torch.tensor([len(one) for one in heard]).cumsum(0) for heard in turns[1]]
        audio = torch.nn.utils.rnn.pad_sequence([torch.cat(heard) for heard in turns[1]], batch_first=True)
        cutoffs = torch.nn.utils.rnn.pad_sequence(ends, batch_first=True, padding_value=-1)
        settings |= {"input_values": audio[:, None], "input_values_cutoffs": cutoffs}
    never = list(range(CODES, CODES + 3))
    found = model.generate(
        input_ids=given, attention_mask=mask, do_sample=False, depth_decoder_do_sample=False, suppress_tokens=never,
        depth_decoder_suppress_tokens=never, max_new_tokens=frames, **settings,
    )  # fmt: skip
    clips = []
    for codes in found:
        ends = (codes == 0).all(dim=-1).nonzero()
        stops = (codes[:, :-1] == 0).all(dim=-1).nonzero()  # theirs ends there, whatever the last codebook holds
        length = int(ends[0]) if len(ends) else len(codes)
        early = len(stops) > 0 and int(stops[0]) < length
        kept = codes[: int(stops[0]) + 1 if early else length].t()
        samples = model.codec_model.decode(kept[None]).audio_values[0, 0] if kept.shape[1] else torch.zeros(0)
        clips.append(Clip(kept, samples, None if early else bool(len(ends))))
    return clips


def changed(folder: Path, change) -> None:
    """Change config.json in place."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
