"""Tiny MusicGen models of transformers as audiocraft's files: the slow, obvious renaming.

Source of the names: transformers' conversion scripts (convert_musicgen_transformers.py, Apache-2.0), read backwards.
"""

import importlib.util
import json
from pathlib import Path

import torch
from tiny_musicgen import make_tokenizer

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("native_names", HERE.parent / "tokenize" / "public" / "native_names.py")
codec_names = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(codec_names)

RENAMED = [
    ("model.decoder.embed_tokens.", "emb."),
    ("model.decoder.layers.", "transformer.layers."),
    ("model.decoder.layer_norm.", "out_norm."),
    ("encoder_attn_layer_norm", "norm_cross"),
    ("self_attn_layer_norm", "norm1"),
    ("final_layer_norm", "norm2"),
    ("encoder_attn.", "cross_attention."),
    ("fc1", "linear1"),
    ("fc2", "linear2"),
    ("lm_heads.", "linears."),
]


def native_state(model):
    """The language model of a composite of transformers, by audiocraft's names."""
    theirs = {name: tensor for name, tensor in model.decoder.state_dict().items() if "embed_positions" not in name}
    native = {}
    for name, tensor in theirs.items():
        for old, new in RENAMED:
            name = name.replace(old, new)
        if "_proj.weight" in name and "out_proj" not in name:
            continue
        native[name] = tensor
    for name in theirs:
        if name.endswith("q_proj.weight"):
            place = name.removesuffix("q_proj.weight")
            fused = torch.cat([theirs[f"{place}{part}_proj.weight"] for part in "qkv"])
            for old, new in RENAMED:
                place = place.replace(old, new)
            native[f"{place}in_proj_weight"] = fused
    projections = {"enc_to_dec_proj": "description", "audio_enc_to_dec_proj": "self_wav"}
    for theirs_, ours in projections.items():
        if hasattr(model, theirs_):
            for part, tensor in getattr(model, theirs_).state_dict().items():
                native[f"condition_provider.conditioners.{ours}.output_proj.{part}"] = tensor
    if hasattr(model, "audio_enc_to_dec_proj"):
        native["condition_provider.conditioners.self_wav.chroma.spec.window"] = torch.hann_window(16384)
    return native


def xp_config(name, **transformer):
    """The config of a published model with other sizes of its transformer."""
    config = json.loads((HERE / "published" / "audiocraft-lm.json").read_text())[name]
    config["transformer_lm"] |= transformer
    return config


def native_folder(folder, model, config, codec=True, text_encoder=True):
    """audiocraft's files of a composite of transformers with its codec, and its text encoder in t5/."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = {"version": "1.3.0", "exported": True}
    torch.save({"best_state": native_state(model), "xp.cfg": json.dumps(config)} | packed, folder / "state_dict.bin")
    if codec:
        theirs = model.audio_encoder
        described = json.loads((HERE.parent / "tokenize/public/published/audiocraft_32khz.json").read_text())["config"]
        described["sample_rate"] = theirs.config.sampling_rate
        described["encodec"]["causal"] = theirs.config.use_causal_conv
        described["seanet"] |= {
            "dimension": theirs.config.hidden_size,
            "n_filters": theirs.config.num_filters,
            "ratios": list(theirs.config.upsampling_ratios),
            "lstm": theirs.config.num_lstm_layers,
            "pad_mode": theirs.config.pad_mode,
            "true_skip": not theirs.config.use_conv_shortcut,
        }
        described["rvq"] |= {"n_q": len(theirs.quantizer.layers), "bins": theirs.config.codebook_size}
        state = codec_names.native_names(theirs.state_dict(), theirs)
        content = {"best_state": state, "xp.cfg": json.dumps(described)} | packed
        torch.save(content, folder / "compression_state_dict.bin")
    if text_encoder:
        model.text_encoder.save_pretrained(folder / "t5")
        make_tokenizer().save_pretrained(folder / "t5")
    return folder
