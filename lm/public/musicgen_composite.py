"""MusicGen whole: the text encoder and the audio codec beside the decoder (`MusicgenForConditionalGeneration`, and
`MusicgenMelodyForConditionalGeneration` for models that follow melodies).

    text_encoder.*       a T5 encoder; its tokenizer's files lie beside config.json
    audio_encoder.*      an EnCodec of one channel; stereo models use it for each channel
    decoder.*            the language model (musicgen.py), with enc_to_dec_proj.*

Source: tensor names and config keys of transformers 5 (Apache-2.0), MusicGen (arXiv:2306.05284).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...configs.files import write_json, write_safetensors
from ...tokenize.base import Tokenizer
from ...tokenize.public.channels import for_channels, of_one_channel
from ...tokenize.public.encodec import encodec_part, read_encodec_part
from ...tokenize.public.folder import PublicFolder
from ...tokenize.spec import AudioGeometry
from ..checkpoints.model_directory import LoadedModel
from ..checkpoints.weights_file import StorageName
from ..conditioning.melody import MelodyConditionConfig
from ..conditioning.text_encoder import TextEncoder, open_text_encoder
from ..models.causal import TokenLM
from .musicgen import COMPOSITES, MELODY, musicgen_config, musicgen_tensors, read_musicgen_config, save_musicgen

TEXT, CODEC, DECODER = "text_encoder", "audio_encoder", "decoder"


def read_musicgen_codec(folder: PublicFolder) -> Tokenizer | None:
    """The codec of a folder; None if it is a decoder alone.

    Raises:
        ValueError: an unsupported codec, by name. WeightsError: tensors missing or misshapen.
    """
    described = read_musicgen_config(folder.path)
    if described["model_type"] not in COMPOSITES:
        return None
    decoder = described[DECODER]
    musicgen_config(decoder, None, str(folder.config_path))  # refuses what the language model does not support
    codec = described.get(CODEC)
    kind = codec.get("model_type") if isinstance(codec, dict) else None
    if kind != "encodec":
        raise ValueError(f"{folder.config_path}: {CODEC}: model_type is {kind!r}; only 'encodec' is supported")
    channels = decoder["audio_channels"]
    tokenizer = read_encodec_part(folder, decoder["num_codebooks"] // channels, CODEC, f"{CODEC}.")
    return tokenizer if channels == 1 else for_channels(tokenizer, channels)


def read_musicgen_text_encoder(folder: PublicFolder) -> TextEncoder | None:
    """The text encoder of a folder; None if it is a decoder alone. Raises as `open_text_encoder`."""
    if read_musicgen_config(folder.path)["model_type"] not in COMPOSITES:
        return None
    return open_text_encoder(folder, TEXT, f"{TEXT}.")


def save_musicgen_composite(folder: Path, model: LoadedModel, dtype: StorageName = "float32") -> None:
    """Write a model with its codec and text encoder as a `MusicgenForConditionalGeneration` folder; without a text
    encoder the decoder alone.

    Args:
        dtype: of the language model's weights; codec and text encoder stay as they are.
    Raises:
        ValueError: the layout cannot represent the model or its codec; names the first setting that differs.
    """
    lm, encoder = model.lm, model.text_encoder
    if not isinstance(lm, TokenLM):
        raise ValueError(f"MusicGen's layout holds a causal language model, found {type(lm).__name__}")
    if encoder is None:
        return save_musicgen(folder, lm, dtype)
    decoder, tensors = musicgen_tensors(lm, dtype, f"{DECODER}.")
    codec, of_codec = encodec_part(of_one_channel(model.tokenizer), f"{CODEC}.")
    tensors |= of_codec | {f"{TEXT}.{name}": tensor for name, tensor in encoder.tensors().items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    encoder.save_tokenizer(folder)
    pad, defaults, geometry = decoder["pad_token_id"], model.defaults, model.spec.geometry
    assert isinstance(geometry, AudioGeometry)
    generation: dict[str, Any] = {
        "bos_token_id": pad,
        "pad_token_id": pad,
        "decoder_start_token_id": pad,
        "do_sample": True,
        "max_length": defaults.max_frames or 1500,
    }
    if isinstance(defaults.guidance, int | float):
        generation["guidance_scale"] = float(defaults.guidance)
    if isinstance(defaults.top_k, int) and defaults.top_k:
        generation["top_k"] = defaults.top_k
    write_json(folder / "generation_config.json", generation)
    melody = next((c for c in lm.config.conditions if isinstance(c, MelodyConditionConfig)), None)
    described: dict[str, Any] = {TEXT: encoder.described, CODEC: codec, DECODER: decoder}
    described |= {"architectures": ["MusicgenForConditionalGeneration"], "model_type": "musicgen"}
    described["is_encoder_decoder"] = melody is None
    extractor: dict[str, Any] = {
        "feature_extractor_type": "EncodecFeatureExtractor",
        "processor_class": "MusicgenProcessor",
        "feature_size": geometry.channels,
        "sampling_rate": geometry.sample_rate,
        "padding_side": "left",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "chunk_length_s": None,
        "overlap": None,
    }
    if melody is not None:
        described |= {"architectures": ["MusicgenMelodyForConditionalGeneration"], "model_type": MELODY}
        described |= {"num_chroma": melody.chroma.bins, "chroma_length": melody.length}
        extractor = melody_extractor(melody)
    write_json(folder / "preprocessor_config.json", extractor)
    write_json(folder / "config.json", described)
    return None


def melody_extractor(melody: MelodyConditionConfig) -> dict[str, Any]:
    """preprocessor_config.json of a `MusicgenMelodyFeatureExtractor`."""
    chroma = melody.chroma
    return {
        "feature_extractor_type": "MusicgenMelodyFeatureExtractor",
        "processor_class": "MusicgenMelodyProcessor",
        "feature_size": chroma.bins,
        "num_chroma": chroma.bins,
        "sampling_rate": chroma.sample_rate,
        "n_fft": chroma.window,
        "hop_length": chroma.hop,
        "chunk_length": chroma.seconds,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "stem_indices": [3, 2],
    }
