"""Make tiny_parler/: checkpoints of Parler-TTS with tiny random weights, and what the package computes from them.

    git clone https://github.com/huggingface/parler-tts DIR/parler    # d108732 made the files beside this script
    pip install --no-deps --target DIR transformers==4.46.1 tokenizers==0.20.3 'huggingface-hub<0.30'
    PYTHONPATH=DIR:DIR/parler python tests/lm/make_parler_codes.py
    PYTHONPATH=DIR:DIR/parler python tests/lm/make_parler_codes.py shapes      # adds tensors to published/parler-*.json
    PYTHONPATH=DIR:DIR/parler python tests/lm/make_parler_codes.py check BACK  # codes of a folder that was written back

Each folder has the files of a published one. `projected` has a projection of the text encoder's states and separate
heads, `grouped` neither, but fewer key/value heads, one matrix of heads and rotary positions. descript-audio-codec is
replaced by an empty module: the codec of these folders is transformers' own DacModel.
"""

import json
import re
import sys
import types
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
TINY, PUBLISHED = HERE / "tiny_parler", HERE / "published"
K, D = 9, 16
NUMBER = re.compile(r"(?<=block\.)\d+|(?<=layers\.)\d+|(?<=lm_heads\.)\d+|(?<=embed_tokens\.)\d+")
FRAMES, LONGEST = 9, 31
"""Frames of the sequence whose logits are compared, and the limit of a clip."""
FUSED = {"use_fused_lm_heads": True, "rope_embeddings": True, "rope_theta": 100.0}
DESCRIPTIONS = ["a calm voice", "a loud and fast voice in a large room"]
PROMPTS = ["hello", "hello world and all who hear it"]


class DAC(torch.nn.Module):
    """In place of descript-audio-codec's."""


def import_parler():
    module = types.ModuleType("dac.model")
    module.DAC = DAC
    sys.modules |= {"dac": types.ModuleType("dac"), "dac.model": module}
    import parler_tts
    import transformers

    return parler_tts, transformers


def config_of(codes, text_width, layers, **more):
    parler, transformers = import_parler()
    text = transformers.T5Config(
        vocab_size=48, d_model=text_width, d_kv=4, d_ff=20, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    codec = transformers.DacConfig(
        encoder_hidden_size=1, downsampling_ratios=[2, 4], decoder_hidden_size=4, upsampling_ratios=[4, 2],
        n_codebooks=K, codebook_size=codes, codebook_dim=2, sampling_rate=8000,
    )  # fmt: skip
    decoder = parler.ParlerTTSDecoderConfig(
        vocab_size=codes + 4, hidden_size=D, num_hidden_layers=layers, num_attention_heads=4, ffn_dim=24,
        num_codebooks=K, max_position_embeddings=64, pad_token_id=codes, eos_token_id=codes, bos_token_id=codes + 1,
        **more,
    )  # fmt: skip
    return parler.ParlerTTSConfig.from_sub_models_config(
        text, codec, decoder, vocab_size=48, pad_token_id=codes, decoder_start_token_id=codes + 1
    )


def make(codes, seed, **more):
    """A model whose codes differ clearly. As a trained one, it never chooses an id that stands for nothing, and
    codebook k ends as soon as codebook k - 1 has."""
    parler, transformers = import_parler()
    torch.manual_seed(seed)
    config = config_of(codes, **more)
    model = parler.ParlerTTSForConditionalGeneration(
        config,
        transformers.T5EncoderModel(config.text_encoder),
        transformers.DacModel(config.audio_encoder),
        parler.ParlerTTSForCausalLM(config.decoder),
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" in name or name.endswith("alpha"):
                continue
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
            elif "audio_encoder" not in name:
                parameter.normal_(std=0.5)
        heads = model.decoder.lm_heads
        norm = model.decoder.model.decoder.layer_norm
        norm.weight[0], norm.bias[0] = 0, 4  # one number of the hidden state that is always the same
        for k in range(K):
            head = heads.weight.view(K, -1, D)[k] if config.decoder.use_fused_lm_heads else heads[k].weight
            head[codes + 1 :] = head[:, 0] = 0
            if k:
                head[codes] = 10 * torch.eye(D)[0]
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                parameter.copy_(parameter.half())  # what the file can hold
    generation = model.generation_config
    generation.bos_token_id = generation.decoder_start_token_id = codes + 1
    generation.pad_token_id = generation.eos_token_id = codes
    generation.max_length, generation.do_sample = LONGEST + K, False
    return model


def make_pieces(path):
    """A sentencepiece model with T5's special pieces and without a table of normalization, which would be large."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*DESCRIPTIONS, *PROMPTS] * 4), model_prefix=str(path.with_suffix("")), vocab_size=40,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2, num_threads=1,
        normalization_rule_name="identity",
    )  # fmt: skip
    path.with_suffix(".vocab").unlink()


def padded(rows, left):
    longest = max(map(len, rows))
    ids = [[0] * (longest - len(row)) + row if left else row + [0] * (longest - len(row)) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) if left else [1] * len(row) + [0] * (longest - len(row))
            for row in rows]  # fmt: skip
    return torch.tensor(ids), torch.tensor(mask)


@torch.no_grad()
def clips(model, descriptions, prompts):
    """The greedy codes [K, T] that reach the codec, for each row."""
    decode, found = model.audio_encoder.decode, []

    def spy(audio_codes, **named):
        found.extend(audio_codes)
        return decode(audio_codes=audio_codes, **named)

    model.audio_encoder.decode = spy
    description, mask = padded(descriptions, False)
    prompt, prompt_mask = padded(prompts, True)
    model.use_audio_scales = False
    samples = model.generate(
        input_ids=description, attention_mask=mask, prompt_input_ids=prompt, prompt_attention_mask=prompt_mask,
        do_sample=False, max_length=LONGEST + K,
    )  # fmt: skip
    model.audio_encoder.decode = decode
    return found, samples


@torch.no_grad()
def logits_of(model, description, prompt, codes):
    """[K, S, vocab] of a whole sequence in Parler's delay pattern, from codes [K, T]."""
    parler, _ = import_parler()
    config = model.config.decoder
    start = torch.full((K, 1), config.bos_token_id)
    _, ids = parler.build_delay_pattern_mask(
        torch.cat([start, codes], 1), config.bos_token_id, config.pad_token_id, codes.shape[1] + K, K
    )
    out = model(
        input_ids=torch.tensor([description]), prompt_input_ids=torch.tensor([prompt]), decoder_input_ids=ids
    ).logits
    return out[:, -ids.shape[1] :]


def main():
    expected = {}
    for name, codes, seed, more in (
        ("projected", 32, 0, {"text_width": 12, "layers": 2}),
        ("grouped", 16, 0, {"text_width": D, "layers": 1, "num_key_value_heads": 2, **FUSED}),
    ):
        folder = TINY / name
        folder.mkdir(parents=True, exist_ok=True)
        make_pieces(folder / "spiece.model")
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
        descriptions = [[*pieces.encode(text), 1] for text in DESCRIPTIONS]
        prompts = [[*pieces.encode(text), 1] for text in PROMPTS]
        for number in range(seed, seed + 200):
            model = make(codes, number, **more)
            rows = [clips(model, [d], [p]) for d, p in zip(descriptions, prompts, strict=True)]
            together = clips(model, descriptions, prompts[1:] * 2)[0]
            shifted = clips(model, descriptions, prompts)[0]
            lengths = [found[0].shape[1] for found, _ in rows if found]  # a clip without frames is not decoded
            if len(lengths) == len(together) == len(shifted) == 2 and max(lengths) == LONGEST > min(lengths) + 6 > 12:
                print(name, "seed", number, "frames", lengths, flush=True)
                break
        model.save_pretrained(folder, state_dict={name: one.half() for name, one in model.state_dict().items()})
        for i, (found, samples) in enumerate(rows):
            assert int(found[0].max()) < codes
            expected[f"{name}.codes.{i}"] = found[0].to(torch.uint8)
            expected[f"{name}.samples.{i}"] = samples[0].float()
        for i in range(2):
            expected[f"{name}.together.{i}"] = together[i].to(torch.uint8)
            expected[f"{name}.padded.{i}"] = shifted[i].to(torch.uint8)
        given = torch.randint(0, codes, (K, FRAMES), generator=torch.Generator().manual_seed(1))
        expected[f"{name}.given"] = given.to(torch.uint8)
        expected[f"{name}.logits"] = logits_of(model, descriptions[1], prompts[0], given)
        for i in range(2):
            expected[f"{name}.description.{i}"] = torch.tensor(descriptions[i], dtype=torch.uint8)
            expected[f"{name}.prompt.{i}"] = torch.tensor(prompts[i], dtype=torch.uint8)
    save_file({key: tensor.contiguous() for key, tensor in expected.items()}, TINY / "expected.safetensors")


def shapes():
    """Names and shapes of the tensors of the published configs, without the codec, whose class is not here: those that
    differ in the number of a layer or a codebook once, with {} for it, and how many they are."""
    parler, transformers = import_parler()
    for path in sorted(PUBLISHED.glob("parler-*.json")):
        described = json.loads(path.read_text())["config"]
        described["audio_encoder"] = transformers.DacConfig(encoder_hidden_size=2).to_dict()
        config = parler.ParlerTTSConfig(**{key: value for key, value in described.items() if key != "model_type"})
        with torch.device("meta"):
            model = parler.ParlerTTSForConditionalGeneration(
                config,
                transformers.T5EncoderModel(config.text_encoder),
                transformers.DacModel(config.audio_encoder),
                parler.ParlerTTSForCausalLM(config.decoder),
            )
        found = {}
        for name, tensor in model.state_dict().items():
            if not name.startswith("audio_encoder."):
                shape, count = found.get(NUMBER.sub("{}", name, count=1), (list(tensor.shape), 0))
                assert shape == list(tensor.shape)
                found[NUMBER.sub("{}", name, count=1)] = (shape, count + 1)
        whole = json.loads(path.read_text()) | {"tensors": found}
        path.write_text(json.dumps(whole) + "\n")


def check(folder):
    """Print whether the package reads a folder that was written back, and makes the same codes of it."""
    from safetensors.torch import load_file

    parler, _ = import_parler()
    expected = load_file(TINY / "expected.safetensors")
    model, report = parler.ParlerTTSForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    print({key: value for key, value in report.items() if value})
    name = "grouped" if model.config.decoder.num_key_value_heads == 2 else "projected"
    for i in range(2):
        ids = [[expected[f"{name}.{part}.{i}"].tolist()] for part in ("description", "prompt")]
        found, samples = clips(model.eval(), *ids)
        same = torch.equal(found[0].to(torch.uint8), expected[f"{name}.codes.{i}"])
        difference = (samples[0] - expected[f"{name}.samples.{i}"]).abs().max()
        print(f"{name} {i}: codes equal: {same}, samples differ by at most {difference:g}")


if __name__ == "__main__":
    {"shapes": shapes, "check": check}.get(sys.argv[1] if len(sys.argv) > 1 else "", main)(*sys.argv[2:])
