"""Write what the package qwen-tts makes of tiny models (qwen3_tts_codes.safetensors), and the tensors of the published
ones (published/qwen3-tts.json).

    pip install transformers==4.57.3 accelerate==1.12.0 einops soundfile librosa
    pip install --no-deps qwen-tts==0.1.1
    export PYTHONPATH=tests/tokenize
    python tests/lm/make_qwen3_tts_codes.py
    python tests/lm/make_qwen3_tts_codes.py write FOLDER CASE    # a tiny model as its published folder
    python tests/lm/make_qwen3_tts_codes.py check BACK CASE      # a folder that was written back

In an environment of its own, as tests/tokenize/make_qwen3_tts_tokenizer.py says. Weights are not stored: `fill` makes
them from their names.
"""

import json
import sys
from pathlib import Path

import torch
from make_native_codecs import listing
from make_qwen3_tts_tokenizer import config_of as codec_config
from make_qwen3_tts_tokenizer import fill as fill_codec
from make_qwen3_tts_tokenizer import import_package, shapes_of
from make_titok_codes import uniform
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
CODES, PUBLISHED = HERE / "qwen3_tts_codes.safetensors", HERE / "published" / "qwen3-tts.json"

V, K = 16, 4
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>")
MERGED = ("assistant", "user", "the", "hello", " the", " cat")
TEXTS = ("Hello, the cat.", "the", "A much longer text: the cat said hello to the other one.", "Ünïcode\n 1234")
REFERENCE = "the cat said"
FRAMES = 5
"""Of a recording."""
LONGEST = 14
"""New ids of a generation, the end among them."""
TALKER = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-6, "vocab_size": V + 1024, "num_code_groups": K,
    "text_hidden_size": 20, "rope_theta": 1000000, "max_position_embeddings": 32768, "attention_bias": False,
    "rope_scaling": {"interleaved": True, "mrope_section": [2, 1, 1], "rope_type": "default", "type": "default"},
    "codec_pad_id": V + 100, "codec_bos_id": V + 101, "codec_eos_token_id": V + 102, "codec_think_id": V + 106,
    "codec_nothink_id": V + 107, "codec_think_bos_id": V + 108, "codec_think_eos_id": V + 109,
    "codec_language_id": {"chinese": V + 7, "english": V + 2, "sichuan_dialect": V + 14},
}  # fmt: skip
PREDICTOR = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 12,
    "num_key_value_heads": 1, "hidden_act": "silu", "rms_norm_eps": 1e-6, "vocab_size": V, "num_code_groups": K,
    "rope_theta": 1000000, "rope_scaling": None, "max_position_embeddings": 65536, "attention_bias": False,
    "layer_types": ["full_attention"] * 2,
}  # fmt: skip
ENCODER = {
    "mel_dim": 128, "enc_dim": 24, "enc_channels": [16, 16, 16, 16, 48], "enc_kernel_sizes": [5, 3, 3, 3, 1],
    "enc_dilations": [1, 2, 3, 4, 1], "enc_attention_channels": 6, "enc_res2net_scale": 4, "enc_se_channels": 5,
    "sample_rate": 24000,
}  # fmt: skip
SPEAKERS = {"spk_id": {"anna": V + 900, "eric": V + 1013}}
SPEAKERS |= {"spk_is_dialect": {"anna": False, "eric": "sichuan_dialect"}}
CASES = {
    "voices": ("custom_voice", "1b7", SPEAKERS, {}),
    "small": ("custom_voice", "0b6", SPEAKERS, {"hidden_size": 24, "num_hidden_layers": 1, "layer_types": None}),
    "base": ("base", "0b6", {"spk_id": {}, "spk_is_dialect": {}}, {}),
    "design": ("voice_design", "1b7", {"spk_id": {}, "spk_is_dialect": {}}, {}),
}
"""tts_model_type, tts_model_size, and what differs in the talker and its code predictor."""
ASKED = {
    "voices": [
        {"speaker": "anna", "language": "English"},
        {"speaker": "eric"},
        {"language": "Chinese", "instruct": "calm"},
        {"speaker": "eric", "language": "English", "instruct": "the cat"},
    ],
    "small": [{"speaker": "eric", "language": "Chinese"}, {}, {"speaker": "anna"}, {"language": "English"}],
    "base": [{"vector": 0}, {}, {"vector": 1, "language": "English"}, {"vector": 2, "language": "Chinese"}],
    "design": [
        {"instruct": "A calm voice."},
        {"instruct": "the cat", "language": "English"},
        {},
        {"language": "Chinese"},
    ],
}
"""What is given beside each of TEXTS."""
PUBLISHED_LANGUAGES = {
    "chinese": 2055, "english": 2050, "german": 2053, "italian": 2070, "portuguese": 2071, "spanish": 2054,
    "japanese": 2058, "korean": 2064, "french": 2061, "russian": 2069, "beijing_dialect": 2074, "sichuan_dialect": 2062,
}  # fmt: skip
PUBLISHED_SPEAKERS = {
    "serena": 3066, "vivian": 3065, "uncle_fu": 3010, "ryan": 3061, "aiden": 2861, "ono_anna": 2873, "sohee": 2864,
    "eric": 2875, "dylan": 2878,
}  # fmt: skip


def text_files():
    """vocab.json, merges.txt and tokenizer_config.json of a tiny text tokenizer."""
    codes, letters, extra = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256)), {}, 0
    for byte in range(256):
        letters[byte] = chr(byte) if byte in codes else chr(256 + extra)
        extra += byte not in codes
    pieces, merges = [letters[byte] for byte in range(256)], []
    for word in MERGED:
        shown = "".join(letters[byte] for byte in word.encode())
        for end in range(2, len(shown) + 1):
            if shown[:end] not in pieces:
                pieces.append(shown[:end])
                merges.append(f"{shown[: end - 1]} {shown[end - 1]}")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {
        str(len(pieces) + i): {"content": name} | flags | {"special": not name.startswith("<tts")}
        for i, name in enumerate(SPECIALS)
    }
    described = {"add_prefix_space": False, "added_tokens_decoder": added, "tokenizer_class": "Qwen2Tokenizer"}
    described |= {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    described |= {"clean_up_tokenization_spaces": False, "model_max_length": 131072, "errors": "replace"}
    return {
        "vocab.json": json.dumps({piece: i for i, piece in enumerate(pieces)}),
        "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
        "tokenizer_config.json": json.dumps(described),
    }


def text_ids():
    """Ids of the special tokens."""
    added = json.loads(text_files()["tokenizer_config.json"])["added_tokens_decoder"]
    return {token["content"]: int(i) for i, token in added.items()}


def config_of(case):
    """config.json of a tiny model."""
    kind, size, talker, predictor = CASES[case]
    ids = text_ids()
    inner = PREDICTOR | predictor
    return {
        "architectures": ["Qwen3TTSForConditionalGeneration"],
        "model_type": "qwen3_tts",
        "tokenizer_type": "qwen3_tts_tokenizer_12hz",
        "tts_model_type": kind,
        "tts_model_size": size,
        "tts_pad_token_id": ids["<tts_pad>"],
        "tts_bos_token_id": ids["<tts_text_bos>"],
        "tts_eos_token_id": ids["<tts_text_eod>"],
        "speaker_encoder_config": ENCODER,
        "talker_config": TALKER | talker | {"text_vocab_size": max(ids.values()) + 5, "code_predictor_config": inner},
    }


def published():
    """config.json of the published models, of what determines them."""
    found = {}
    numbers = {key: value for key, value in TALKER.items() if key.startswith("codec") and isinstance(value, int)}
    marks = {key: value + 2048 - V for key, value in numbers.items()}
    for size, name, width, inner in (("0b6", "0.6B", 1024, 3072), ("1b7", "1.7B", 2048, 6144)):
        for kind in ("base", "custom_voice", "voice_design"):
            if (size, kind) == ("0b6", "voice_design"):
                continue
            speakers = PUBLISHED_SPEAKERS if kind == "custom_voice" else {}
            talker = TALKER | marks | {
                "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": 28, "num_attention_heads": 16,
                "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 3072, "num_code_groups": 16,
                "text_hidden_size": 2048, "text_vocab_size": 151936, "codec_language_id": PUBLISHED_LANGUAGES,
                "spk_id": speakers, "spk_is_dialect": {
                    one: {"eric": "sichuan_dialect", "dylan": "beijing_dialect"}.get(one, False) for one in speakers
                },
                "rope_scaling": TALKER["rope_scaling"] | {"mrope_section": [24, 20, 20]},
            }  # fmt: skip
            predictor = PREDICTOR | {
                "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 5, "num_attention_heads": 16,
                "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 2048, "num_code_groups": 16,
                "layer_types": ["full_attention"] * 5,
            }  # fmt: skip
            found[f"{name}-{kind}"] = {
                "model_type": "qwen3_tts", "tokenizer_type": "qwen3_tts_tokenizer_12hz", "tts_model_size": size,
                "tts_model_type": kind, "tts_bos_token_id": 151672, "tts_eos_token_id": 151673,
                "tts_pad_token_id": 151671, "speaker_encoder_config": {"enc_dim": width, "sample_rate": 24000},
                "talker_config": talker | {"code_predictor_config": predictor},
            }  # fmt: skip
    return found


def fill(shapes, seed=0):
    """A weight for each name and shape, such that codes vary and some clips end."""
    tensors = {}
    for name, shape in shapes.items():
        value = uniform(name, seed, shape)
        if "norm" in name:
            value = 1 + 0.3 * value
        elif "embedding" in name:
            value *= 1.5
        elif len(shape) > 1:
            value *= (3 / value[0].numel()) ** 0.5 * (2 if "head" in name else 1)
        else:
            value *= 0.3
        if name == "talker.codec_head.weight":
            value[V + 102] *= 1.3
        tensors[name] = value.contiguous()
    return tensors


def vector(number, width=24):
    """A speaker."""
    return uniform("speaker", number, (width,))


def recording():
    """Samples at 24 kHz, and codes [K, T]."""
    codes = ((uniform("recording", 0, (K, FRAMES)) + 1) / 2 * V).long().clamp(max=V - 1)
    return 0.5 * uniform("samples", 0, (5000,)), codes


def build(case):
    """A model of the package and the modules it is of."""
    import_package()
    from qwen_tts.core.models.configuration_qwen3_tts import Qwen3TTSConfig
    from qwen_tts.core.models.modeling_qwen3_tts import Qwen3TTSForConditionalGeneration

    model = Qwen3TTSForConditionalGeneration(Qwen3TTSConfig(**config_of(case))).eval()
    model.load_state_dict(fill(shapes_of(model)))
    return model


def wrapped(model, folder):
    """The package's interface around a model, with the text tokenizer in a folder."""
    from qwen_tts.core.models.processing_qwen3_tts import Qwen3TTSProcessor
    from qwen_tts.inference.qwen3_tts_model import Qwen3TTSModel
    from transformers import AutoTokenizer

    return Qwen3TTSModel(model, Qwen3TTSProcessor(tokenizer=AutoTokenizer.from_pretrained(folder)), {})


@torch.no_grad()
def speak(package, case, rows, order=None, heard=False):
    """Greedy codes [T, K] and hidden states [T, D] of some of TEXTS; order: True if the text comes first."""
    asked = [ASKED[case][i] for i in rows]
    ids = package._tokenize_texts([package._build_assistant_text(TEXTS[i]) for i in rows])
    instructs = [one.get("instruct") for one in asked]
    given = {
        "input_ids": ids,
        "languages": [one.get("language", "Auto") for one in asked],
        "instruct_ids": [one and package._tokenize_texts([package._build_instruct_text(one)])[0] for one in instructs],
        "non_streaming_mode": case != "base" if order is None else order,
    }
    if case == "base":
        vectors = [None if one.get("vector") is None else vector(one["vector"]) for one in asked]
        if heard:
            text = package._tokenize_texts([package._build_ref_text(REFERENCE)])[0]
            prompt = {"ref_code": [recording()[1].T] * len(rows), "icl_mode": [True] * len(rows)}
            given["ref_ids"] = [text] * len(rows)
        else:
            prompt = {"ref_code": [None] * len(rows), "icl_mode": [False] * len(rows)}
        prompt |= {"x_vector_only_mode": [one is not None and not heard for one in vectors]}
        prompt |= {"ref_spk_embedding": [vector(0) if one is None else one for one in vectors]}
        given["voice_clone_prompt"] = prompt
    else:
        given["speakers"] = [one.get("speaker", "") for one in asked]
    return package.model.generate(
        **given, max_new_tokens=LONGEST, do_sample=False, subtalker_dosample=False, repetition_penalty=1.05
    )


@torch.no_grad()
def logits_of(model, codes, hidden):
    """Logits of codebook 0 and its end [T, V + 1], and of the others [T, K - 1, V], given all codes [T, K]."""
    first = model.talker.codec_head(hidden)
    others, _ = model.talker.forward_sub_talker_finetune(codes, hidden)
    return torch.cat([first[:, :V], first[:, V + 102 : V + 103]], dim=1), others


def write_folder(folder, case, model):
    """A tiny model as it is published: config, weights, text tokenizer, codec."""
    kind, config = import_package()
    folder = Path(folder)
    (folder / "speech_tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_of(case)))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    for name, content in text_files().items():
        (folder / name).write_text(content)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "max_new_tokens": 8192}))
    codec = kind(config(**codec_config("small")))
    codec.load_state_dict(fill_codec(shapes_of(codec), 0))
    codec.save_pretrained(folder / "speech_tokenizer")
    described = {"feature_extractor_type": "EncodecFeatureExtractor", "feature_size": 1, "sampling_rate": 120}
    (folder / "speech_tokenizer" / "preprocessor_config.json").write_text(json.dumps(described))


def main():
    import tempfile

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, content in text_files().items():
            (Path(folder) / name).write_text(content)
        for case in CASES:
            model = build(case)
            package, rows = wrapped(model, folder), range(len(TEXTS))
            batch, _ = speak(package, case, rows)
            for i in rows:
                (codes,), (hidden,) = speak(package, case, [i])
                same = codes.shape == batch[i].shape and torch.equal(codes, batch[i])
                print(case, i, "frames", len(codes), "of", LONGEST - 1, "the same in a batch:", same)
                first, others = logits_of(model, codes, hidden)
                found |= {f"{case}.{i}.codes": codes, f"{case}.{i}.first": first, f"{case}.{i}.others": others}
            if case == "base":
                for order in (True, False):
                    for heard in (True, False):
                        if (order, heard) == (False, False):
                            continue
                        for i in (1, 2) if heard else rows:
                            (codes,), _ = speak(package, case, [i], order, heard)
                            name = f"base.{i}.{'before' if order else 'beside'}.{'heard' if heard else 'vector'}"
                            found[name] = codes
                            print(name, "frames", len(codes))
                found["speaker"] = model.extract_speaker_embedding(recording()[0].numpy(), 24000)
                print("speaker", found["speaker"][:4])
            if case == "voices":  # the other order
                for i in rows:
                    found[f"voices.{i}.beside"] = speak(package, case, [i], False)[0][0]
            if case == "design":
                encoded = package.processor(text=list(TEXTS), padding=False)["input_ids"]
                found |= {f"text.{i}": torch.tensor(ids) for i, ids in enumerate(encoded)}
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, CODES)
    from qwen_tts.core.models.configuration_qwen3_tts import Qwen3TTSConfig
    from qwen_tts.core.models.modeling_qwen3_tts import Qwen3TTSForConditionalGeneration

    tables = {}
    for name, described in published().items():
        with torch.device("meta"):
            model = Qwen3TTSForConditionalGeneration(Qwen3TTSConfig(**json.loads(json.dumps(described))))
        tables[name] = {"config": described} | listing(shapes_of(model))
    PUBLISHED.write_text(json.dumps(tables, indent=1) + "\n")


def write(folder, case):
    """A tiny model as it is published."""
    write_folder(folder, case, build(case))


def check(folder, case):
    """Print whether the package reads a folder that was written back, and makes the same of it."""
    import_package()
    from qwen_tts import Qwen3TTSModel

    package = Qwen3TTSModel.from_pretrained(folder)
    names, held = set(package.model.state_dict()), set(load_file(Path(folder) / "model.safetensors"))
    expected = load_file(CODES)
    same = [torch.equal(speak(package, case, [i])[0][0], expected[f"{case}.{i}.codes"]) for i in range(len(TEXTS))]
    print(f"{case}: missing {sorted(names - held)}, unexpected {sorted(held - names)}, codes equal: {same}")


if __name__ == "__main__":
    {"write": write, "check": check}.get(sys.argv[1] if len(sys.argv) > 1 else "", main)(*sys.argv[2:])
