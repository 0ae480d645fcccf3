"""Tiny MusicGen models of transformers with random weights, and conditions for them.

transformers imports a model's file when the class is first asked for, so only the tests that use one pay for it.
"""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers")

V, D, TEXT_WIDTH = 32, 24, 16


def decoder_config(books=4, channels=1) -> transformers.MusicgenDecoderConfig:
    return transformers.MusicgenDecoderConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=2,
        num_attention_heads=3,
        ffn_dim=40,
        num_codebooks=books,
        audio_channels=channels,
        pad_token_id=V,
        bos_token_id=V,
    )


def strong(model):
    """With larger weights, so that some codes are clearly likelier than others, and random norms and biases, which a
    new model fills with ones and zeros."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
            elif "audio_encoder" not in name:
                parameter.normal_(std=0.4)
    return model.eval()


def make_bare(books=4, channels=1, seed=0) -> transformers.MusicgenForCausalLM:
    torch.manual_seed(seed)
    return strong(transformers.MusicgenForCausalLM(decoder_config(books, channels)))


def make_composite(seed=0, books=4, channels=1, text_width=TEXT_WIDTH) -> transformers.MusicgenForConditionalGeneration:
    """With random codebooks in its codec, which has one channel and `books` / `channels` codebooks."""
    text = transformers.T5Config(vocab_size=30, d_model=text_width, d_kv=4, d_ff=20, num_layers=1, num_heads=2)
    codec = transformers.EncodecConfig(
        sampling_rate=8000, num_filters=2, hidden_size=8, upsampling_ratios=[4, 2], codebook_size=V, num_lstm_layers=1
    )
    codec.target_bandwidths = [codec.frame_rate * codec.codebook_nbits * (books // channels) / 1000]
    torch.manual_seed(seed)
    config = transformers.MusicgenConfig(
        text_encoder=text, audio_encoder=codec, decoder=decoder_config(books, channels)
    )
    model = strong(transformers.MusicgenForConditionalGeneration(config))
    for name, buffer in model.audio_encoder.named_buffers():
        if name.endswith("embed"):
            buffer.normal_(std=0.3)
    return model


BINS, CHROMA_LENGTH = 12, 9


def make_melody(seed=0) -> transformers.MusicgenMelodyForConditionalGeneration:
    """A model that follows melodies; see `make_composite`."""
    like = make_composite(seed)
    decoder = transformers.MusicgenMelodyDecoderConfig(
        **{key: value for key, value in decoder_config().to_dict().items() if key in SHARED}
    )
    config = transformers.MusicgenMelodyConfig(
        text_encoder=like.config.text_encoder, audio_encoder=like.config.audio_encoder, decoder=decoder,
        num_chroma=BINS, chroma_length=CHROMA_LENGTH,
    )  # fmt: skip
    model = strong(transformers.MusicgenMelodyForConditionalGeneration(config))
    model.audio_encoder.load_state_dict(like.audio_encoder.state_dict())
    return model


SHARED = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "num_codebooks"),
    *("audio_channels", "pad_token_id", "bos_token_id"),
)
PIECES = ["\u2581calm", "\u2581piano", "\u2581a", "\u2581drums", "\u2581and", *"acdilmnoprsu"]


def make_tokenizer() -> transformers.T5Tokenizer:
    """Of a few words and letters; ids 0 .. 2 are the pad, the end and the unknown."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    return transformers.T5Tokenizer(vocab=[*pieces, *((piece, -2.5) for piece in PIECES)], extra_ids=0)


def save_whole(folder, model) -> None:
    """With the files of the tokenizer, as on the Hub."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def make_states(rows, width, seed=1):
    """States [rows, 5, width] of 5, 3, 1, ... vectors, zero beyond; their lengths and their mask as transformers
    takes it."""
    states = torch.randn(rows, 5, width, generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor([5, 3, 1, 4][:rows])
    mask = torch.arange(5) < lengths[:, None]
    return states * mask[..., None], lengths, mask.long()
