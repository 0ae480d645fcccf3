"""LlamaGen t2i: logits and codes of its authors' code, tensors of published models, and what is refused."""

import json
import math

import make_llamagen_codes
import pytest
import torch
import torch.nn.functional as F
from test_llamagen_directory import vq_tensors
from test_parler import hollow, spelled

from tessera.configs.files import read_safetensors, write_safetensors
from tessera.configs.tensor_checks import WeightsError
from tessera.generate import generate
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.public.llamagen import CAPTION_DEFAULTS, LLAMAGEN_DEFAULTS, load_llamagen, save_llamagen
from tessera.lm.public.registry import read_public_model, recognize_model
from tessera.lm.public.summary import summarize
from tessera.tokenize.public.folder import PublicFolder
from tessera.tokenize.public.images.llamagen_vq import read_llamagen_vq
from tessera.tokenize.public.survey import Surveyed, surveying

TINY = make_llamagen_codes.TINY
EXPECTED = read_safetensors(TINY / "expected.safetensors")[0]
PUBLISHED = sorted(make_llamagen_codes.PUBLISHED.glob("llamagen-*.json"))
ROWS, FRAMES = len(make_llamagen_codes.LENGTHS), make_llamagen_codes.SIDE**2
CAPTIONS = [EXPECTED[f"caption.{i}"] for i in range(ROWS)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A VQ-16 of the model's codes."""
    folder = tmp_path_factory.mktemp("vq")
    write_safetensors(folder / "model.safetensors", vq_tensors(make_llamagen_codes.CODES))
    return read_llamagen_vq(PublicFolder(folder), 16 * make_llamagen_codes.SIDE)


@pytest.fixture(scope="module")
def lm(tokenizer):
    return load_llamagen(TINY, tokenizer.spec)


def both_ways(lm, codes, batch):
    """Logits [B, T, V] of whole sequences, and step by step."""
    with torch.no_grad():
        whole = lm(codes, None, batch).logits[:, 0]
        state = lm.start(batch, capacity=codes.shape[2])
        read = torch.cat([lm.start_ids(len(codes))[..., None], codes[:, :, :-1]], dim=2)
        steps = [lm.step(state, read[:, :, s]) for s in range(codes.shape[2])]
    return whole, torch.cat(steps, dim=1)


def test_logits_of_captions_and_of_their_nulls(lm):
    """Captions of 3, 7 and 120 states in a batch; the null of a caption has as many places."""
    codes = EXPECTED["given"].long()[:, None]
    batch = ConditionBatch.make(embeddings=CAPTIONS)
    for kind, given in (("logits", batch), ("null", lm.conditions.null(batch))):
        expected = torch.stack([EXPECTED[f"{kind}.{i}"] for i in range(ROWS)])
        for found in both_ways(lm, codes, given):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    nothing = ConditionBatch.make(embeddings=[None, CAPTIONS[0]]).rows(slice(0, 1))  # all 120 places of the null
    for found in both_ways(lm, codes[2:], nothing):
        torch.testing.assert_close(found[0], EXPECTED["null.2"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0], [1]], ids=str)
@pytest.mark.parametrize("name", make_llamagen_codes.GUIDANCE)
def test_greedy_pictures(lm, tokenizer, name, rows):
    guidance = make_llamagen_codes.GUIDANCE[name]
    result = generate(lm, tokenizer, embedding=[CAPTIONS[row] for row in rows], temperature=0.0, guidance=guidance)
    assert torch.equal(result.codes[:, 0], EXPECTED[f"codes.{name}"].long()[rows])


def plain_logits(tensors, heads, side, prefix, codes):
    """Logits [T, V] of one picture after prefix tokens [n, D], by the published formulas."""
    x = torch.cat([prefix, tensors["tok_embeddings.weight"][codes[:-1]]])
    n, (S, D) = len(prefix), x.shape
    E = D // heads
    speeds = 10000.0 ** (-torch.arange(E // 4) / (E // 4))
    place = torch.arange(S - n)
    angles = torch.cat([(place // side)[:, None] * speeds, (place % side)[:, None] * speeds], dim=1)
    turns = torch.cat([torch.zeros(n, E // 2), torch.polar(torch.ones_like(angles), angles)])[:, None]

    def norm(x, weight):
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight

    def turned(x):
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turns
        return torch.view_as_real(pairs).flatten(-2)

    for layer in range(len([name for name in tensors if name.endswith("attention.wo.weight")])):
        one = {name: tensors[f"layers.{layer}.{name}.weight"] for name in ("attention.wqkv", "attention.wo")}
        y = norm(x, tensors[f"layers.{layer}.attention_norm.weight"])
        q, k, v = (y @ one["attention.wqkv"].T).view(S, 3, heads, E).unbind(1)
        scores = torch.einsum("she,the->hst", turned(q), turned(k)) / math.sqrt(E)
        weights = scores.masked_fill(~torch.ones(S, S, dtype=torch.bool).tril(), -math.inf).softmax(-1)
        x = x + torch.einsum("hst,the->she", weights, v).flatten(1) @ one["attention.wo"].T
        y = norm(x, tensors[f"layers.{layer}.ffn_norm.weight"])
        w1, w2, w3 = (tensors[f"layers.{layer}.feed_forward.w{i}.weight"] for i in (1, 2, 3))
        x = x + (F.silu(y @ w1.T) * (y @ w3.T)) @ w2.T
    return (norm(x, tensors["norm.weight"]) @ tensors["output.weight"].T)[n - 1 :]


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes(seed, tmp_path):
    generator = torch.Generator().manual_seed(seed)

    def number(first, last):
        return int(torch.randint(first, last + 1, (), generator=generator))

    heads, layers, side, V = number(1, 3), number(1, 2), number(1, 3), number(2, 9)
    D, ffn, length, width = heads * 4 * number(2, 3), 8 * number(1, 3), number(1, 6), number(1, 7)
    shapes = {
        "tok_embeddings.weight": (V, D),
        "output.weight": (V, D),
        "norm.weight": (D,),
        "cls_embedding.uncond_embedding": (length, width),
        "cls_embedding.cap_proj.fc1.weight": (D, width),
        "cls_embedding.cap_proj.fc2.weight": (D, D),
    }
    for n in range(layers):
        shapes |= {
            f"layers.{n}.attention.wqkv.weight": (3 * D, D),
            f"layers.{n}.attention.wo.weight": (D, D),
            f"layers.{n}.feed_forward.w1.weight": (ffn, D),
            f"layers.{n}.feed_forward.w2.weight": (D, ffn),
            f"layers.{n}.feed_forward.w3.weight": (ffn, D),
            f"layers.{n}.attention_norm.weight": (D,),
            f"layers.{n}.ffn_norm.weight": (D,),
        }
    tensors = {name: 0.5 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    described = {"model_type": "llamagen", "image_size": 8 * side, "downsample_size": 8, "n_head": heads}
    (tmp_path / "config.json").write_text(json.dumps(described))
    lm = load_llamagen(tmp_path)
    B = number(1, 3)
    captions = [torch.randn(number(1, length), width, generator=generator) for _ in range(B)]
    codes = torch.randint(V, (B, 1, side * side), generator=generator)
    batch = ConditionBatch.make(embeddings=captions)
    null = tensors["cls_embedding.uncond_embedding"]
    for given, states in ((batch, captions), (lm.conditions.null(batch), [null[-len(one) :] for one in captions])):
        for found in both_ways(lm, codes, given):
            for row, one in enumerate(states):
                hidden = F.gelu(one @ tensors["cls_embedding.cap_proj.fc1.weight"].T, approximate="tanh")
                prefix = hidden @ tensors["cls_embedding.cap_proj.fc2.weight"].T
                expected = plain_logits(tensors, heads, side, prefix, codes[row, 0])
                torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)
    save_llamagen(tmp_path / "back", lm)
    back = read_safetensors(tmp_path / "back" / "model.safetensors")[0]
    assert back.keys() == tensors.keys() and all(tensor.equal(back[name]) for name, tensor in tensors.items())
    again = load_llamagen(tmp_path / "back")
    assert (again.config, again.spec) == (lm.config, lm.spec)


def test_dropped_captions_in_training(lm):
    """A row without its caption has the null vectors in its place, as many as it had."""
    part = lm.conditions.parts["embedding"]
    batch = ConditionBatch.make(embeddings=CAPTIONS[:2])
    with torch.no_grad():
        kept, null = (part(given)[0] for given in (batch, lm.conditions.null(batch)))
        part.train()
        torch.manual_seed(0)
        found = torch.stack([part(batch)[0] for _ in range(100)])
        part.eval()
    dropped = (found == null).flatten(2).all(-1)
    assert ((found == kept).flatten(2).all(-1) ^ dropped).all() and 5 < int(dropped.sum()) < 40


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_tensors_of_published_models(path, tmp_path):
    described = json.loads(path.read_text())
    shapes = spelled(described["tensors"])
    name = path.stem.removeprefix("llamagen-")
    hollow(tmp_path / f"{name}.safetensors", shapes)
    assert recognize_model(tmp_path) == "llamagen"
    summary = summarize(tmp_path)
    assert summary.fits and summary.left_out == (), summary
    (part,) = summary.parts
    assert part.num_tensors == len(shapes)
    assert f"{described['heads']} heads" in part.described
    assert ("the text encoder in t5/" in summary.lacks) == name.startswith("t2i")
    with surveying(), pytest.raises(Surveyed) as stopped:
        load_llamagen(tmp_path)
    assert stopped.value.survey.spec.geometry.num_frames == described["codes"]


def test_defaults_are_those_of_the_scripts(lm):
    model = read_public_model(TINY)
    assert model.defaults == CAPTION_DEFAULTS != LLAMAGEN_DEFAULTS
    assert (model.defaults.guidance, model.defaults.top_k, model.defaults.temperature) == (7.5, 1000, 1.0)
    assert model.missing == ["the image tokenizer", "the text encoder in t5/"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"gpt_type": "c2i"}, "config.json: gpt_type is 'c2i', but the tensors are of a t2i model"),
        ({"cls_token_num": 77}, "config.json: cls_token_num is 77, but the tensors have 120"),
        ({"caption_dim": 2048}, "config.json: caption_dim is 2048, but the tensors have 12"),
        ({"caption_dim": "x"}, "caption_dim must be a whole number, found 'x'"),
        ({"class_dropout_prob": 2}, "class_dropout_prob must be from 0 to below 1, found '2'"),
        ({"n_head": 3}, "width 16 is not a multiple of heads 3"),
    ],
)
def test_a_config_that_lies_is_refused_in_one_line(said, message, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((TINY / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(json.loads((TINY / "config.json").read_text()) | said))
    with pytest.raises(ValueError, match=message) as refused:
        load_llamagen(tmp_path)
    assert "\n" not in str(refused.value)


def test_damaged_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text((TINY / "config.json").read_text())
    whole = (TINY / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="model.safetensors") as refused:
        load_llamagen(tmp_path)
    assert "\n" not in str(refused.value)
    tensors = read_safetensors(TINY / "model.safetensors")[0]
    name = "cls_embedding.uncond_embedding"
    write_safetensors(tmp_path / "model.safetensors", {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(WeightsError, match=f"tensor '{name}' is missing"):
        load_llamagen(tmp_path)
    name = "cls_embedding.cap_proj.fc2.weight"
    write_safetensors(tmp_path / "model.safetensors", tensors | {name: tensors[name][:, :8].contiguous()})
    with pytest.raises(WeightsError, match=name):
        load_llamagen(tmp_path)


def test_what_the_layout_cannot_hold(lm, tmp_path):
    condition = lm.config.conditions[0].model_copy(update={"null": "learned"})
    other = load_llamagen(TINY)
    other.config = lm.config.model_copy(update={"conditions": (condition,)})
    with pytest.raises(ValueError, match="LlamaGen's layout does not support this lm.conditions"):
        save_llamagen(tmp_path / "out", other)
    assert not (tmp_path / "out").exists()


def test_captions_that_are_too_long(lm, tokenizer):
    with pytest.raises(ValueError, match="embedding has 121 vectors, the model reads at most 120"):
        generate(lm, tokenizer, embedding=torch.zeros(121, 12))
