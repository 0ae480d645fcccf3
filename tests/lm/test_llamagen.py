"""LlamaGen's class-conditional models: logits of its published mathematics, its quirk of rotation included."""

import argparse
import json
import math

import pytest
import torch
import torch.nn.functional as F
from small_models import make_config, make_lm

from tessera.configs.files import read_safetensors, write_safetensors
from tessera.configs.tensor_checks import WeightsError
from tessera.generate.sampling.guidance import ClassifierFreeGuidance
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.public.llamagen import UNKNOWN_TOKENIZER, load_llamagen, save_llamagen
from tessera.tokenize.spec import AudioGeometry

D, HEADS, LAYERS, FFN, CODES, CLASSES, SIDE = 24, 3, 2, 40, 17, 5, 3
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 on both sides, sums in another order


def make_tensors(kv_heads=HEADS, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return 0.4 * torch.randn(*shape, generator=generator)

    tensors = {
        "tok_embeddings.weight": random(CODES, D),
        "cls_embedding.embedding_table.weight": random(CLASSES + 1, D),
        "norm.weight": 1 + random(D),
        "output.weight": random(CODES, D),
    }
    for n in range(LAYERS):
        tensors |= {
            f"layers.{n}.attention.wqkv.weight": random(D + 2 * D * kv_heads // HEADS, D),
            f"layers.{n}.attention.wo.weight": random(D, D),
            f"layers.{n}.feed_forward.w1.weight": random(FFN, D),
            f"layers.{n}.feed_forward.w2.weight": random(D, FFN),
            f"layers.{n}.feed_forward.w3.weight": random(FFN, D),
            f"layers.{n}.attention_norm.weight": 1 + random(D),
            f"layers.{n}.ffn_norm.weight": 1 + random(D),
        }
    return tensors


def slow_forward(tensors, label, codes, kv_heads=HEADS, before=0.0):
    """Logits [T, CODES] of one picture, position by position and head by head; the class's turn is `before`."""
    E = D // HEADS

    def norm(x, name):
        return x / math.sqrt(float(x.square().mean()) + 1e-5) * tensors[name]

    def turn(x, position):
        """Pairs (0, 1), (2, 3), ... of a head: the first half turns by the row, the second by the column."""
        if position == 0:  # the class
            return x * before
        row, column = divmod(position - 1, SIDE)
        turned = x.clone()
        for pair in range(E // 2):
            where, j = (row, pair) if pair < E // 4 else (column, pair - E // 4)
            angle = where * 10000.0 ** (-2 * j / (E // 2))
            a, b = float(x[2 * pair]), float(x[2 * pair + 1])
            turned[2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            turned[2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
        return turned

    table = tensors["tok_embeddings.weight"]
    stream = [tensors["cls_embedding.embedding_table.weight"][label], *(table[code] for code in codes[:-1])]
    for n in range(LAYERS):
        layer = {name: tensors[f"layers.{n}.{name}.weight"] for name in ("attention.wqkv", "attention.wo")}
        w1, w2, w3 = (tensors[f"layers.{n}.feed_forward.w{i}.weight"] for i in (1, 2, 3))
        queries, keys, values = [], [], []
        for position, x in enumerate(stream):
            q, k, v = (layer["attention.wqkv"] @ norm(x, f"layers.{n}.attention_norm.weight")).split(
                [D, kv_heads * E, kv_heads * E]
            )
            queries.append([turn(head, position) for head in q.split(E)])
            keys.append([turn(head, position) for head in k.split(E)])
            values.append(v.split(E))
        for position in range(len(stream)):
            heads = []
            for h in range(HEADS):
                g = h // (HEADS // kv_heads)
                seen = range(position + 1)
                scores = torch.stack([queries[position][h] @ keys[other][g] for other in seen]) / math.sqrt(E)
                heads.append(sum(w * values[other][g] for w, other in zip(scores.softmax(0), seen, strict=True)))
            stream[position] = stream[position] + layer["attention.wo"] @ torch.cat(heads)
        for position, x in enumerate(stream):
            y = norm(x, f"layers.{n}.ffn_norm.weight")
            stream[position] = x + w2 @ (F.silu(w1 @ y) * (w3 @ y))
    return torch.stack([tensors["output.weight"] @ norm(x, "norm.weight") for x in stream])


def write(folder, tensors, **described):
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors)
    plain = {"model_type": "llamagen", "image_size": 16 * SIDE, "n_head": HEADS, "num_classes": CLASSES}
    described = {name: value for name, value in (plain | described).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize("kv_heads", [HEADS, 1])
def test_logits_are_those_of_the_published_mathematics(kv_heads, tmp_path):
    tensors = make_tensors(kv_heads)
    lm = load_llamagen(write(tmp_path, tensors))
    codes = torch.randint(CODES, (2, 1, SIDE * SIDE), generator=torch.Generator().manual_seed(1))
    given = ConditionBatch.make(labels=[3, None])  # no class is the row after the last
    with torch.no_grad():
        output = lm(codes, None, given)
        state = lm.start(given, capacity=SIDE * SIDE)
        read = torch.cat([lm.start_ids(2)[..., None], codes[:, :, :-1]], dim=2)
        stepped = torch.stack([lm.step(state, read[:, :, s]) for s in range(SIDE * SIDE)], dim=2)
    for b, label in enumerate([3, CLASSES]):
        expected = slow_forward(tensors, label, codes[b, 0].tolist(), kv_heads)
        torch.testing.assert_close(output.logits[b, 0], expected, **CLOSE)
        torch.testing.assert_close(stepped[b, 0], expected, **CLOSE)
        # the class turned by an angle of zero is another model
        other = slow_forward(tensors, label, codes[b, 0].tolist(), kv_heads, before=1.0)
        assert float((other - expected).abs().max()) > 0.1
    assert lm.spec.fingerprint == UNKNOWN_TOKENIZER
    assert (lm.spec.geometry.rows, lm.spec.geometry.width) == (SIDE, 48)


def test_written_back_nothing_has_changed(tmp_path):
    tensors = make_tensors()
    lm = load_llamagen(write(tmp_path / "in", tensors | {"freqs_cis": torch.zeros(2)}))
    save_llamagen(tmp_path / "out", lm)
    written = read_safetensors(tmp_path / "out" / "model.safetensors")[0]
    assert written.keys() == tensors.keys()
    assert all(written[name].equal(tensor) for name, tensor in tensors.items())
    again = load_llamagen(tmp_path / "out")
    assert (again.config, again.spec) == (lm.config, lm.spec)


def test_wrong_files_are_refused(tmp_path):
    tensors = make_tensors()
    name = "layers.1.feed_forward.w3.weight"
    write(tmp_path, {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(WeightsError, match=f"1 tensors that the config asks for are missing, first '{name}'"):
        load_llamagen(tmp_path)
    write(tmp_path, {n: t for n, t in tensors.items() if not n.startswith("cls")})
    with pytest.raises(WeightsError, match=r"'cls_embedding.embedding_table.weight' is missing; .*\(c2i or t2i\)"):
        load_llamagen(tmp_path)
    write(tmp_path, tensors, n_head=None)
    with pytest.raises(ValueError, match="no released model has width 24; set n_head in config.json"):
        load_llamagen(tmp_path)
    write(tmp_path, tensors, image_size="256")
    with pytest.raises(ValueError, match="image_size must be a whole number, found '256'"):
        load_llamagen(tmp_path)
    write(tmp_path, tensors, model_type="llama")
    with pytest.raises(ValueError, match="its model_type is not 'llamagen'"):
        load_llamagen(tmp_path)
    write(tmp_path, tensors)
    (tmp_path / "model.safetensors").rename(tmp_path / "c2i_B_256.pt")
    with pytest.raises(ValueError, match="c2i_B_256.pt: not a usable file of tensors"):
        load_llamagen(tmp_path)
    torch.save({"model": tensors, "args": argparse.Namespace(gpt_model="GPT-B")}, tmp_path / "c2i_B_256.pt")
    assert load_llamagen(tmp_path).config.width == 24
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llamagen", "n_head": HEADS}))
    (tmp_path / "c2i_B_256.pt").rename(tmp_path / "model.pt")
    with pytest.raises(
        ValueError, match=r'model.pt: the size .* write \{"model_type": "llamagen", "image_size": 256\}'
    ):
        load_llamagen(tmp_path)


def test_other_tokenizers_and_other_models_are_refused(tmp_path):
    lm = load_llamagen(write(tmp_path / "in", make_tensors()))
    sound = AudioGeometry(sample_rate=8000, samples_per_frame=80)
    with pytest.raises(ValueError, match=r"one codebook of 17 image codes, .* \[17\] of audio"):
        load_llamagen(tmp_path / "in", spec=lm.spec.model_copy(update={"geometry": sound}))
    with pytest.raises(ValueError, match="one codebook of square images, found 3 of audio"):
        save_llamagen(tmp_path / "out", make_lm(make_config()))
    lm.config = lm.config.model_copy(update={"start": "token"})
    with pytest.raises(
        ValueError, match="LlamaGen's layout does not support this lm.start: found 'token', it needs 'condition'"
    ):
        save_llamagen(tmp_path / "out", lm)
    assert not (tmp_path / "out").exists()


def no_null(tensors):
    name = "cls_embedding.embedding_table.weight"
    return tensors | {name: tensors[name][:-1].contiguous()}


@pytest.mark.parametrize("said", [{"num_classes": CLASSES}, {"num_classes": None, "class_dropout_prob": 0}])
def test_a_model_without_a_row_for_no_class_keeps_all_its_classes(said, tmp_path):
    """class_dropout_prob 0: the last class is no null, and there is no guidance."""
    tensors = no_null(make_tensors())
    lm = load_llamagen(write(tmp_path / "in", tensors, **said))
    label = lm.config.conditions[0]
    assert (label.classes, label.dropout) == (CLASSES, 0.0)
    codes = torch.zeros(1, 1, SIDE * SIDE, dtype=torch.long)
    with torch.no_grad():
        found = lm(codes, None, ConditionBatch.make(labels=[CLASSES - 1])).logits[0, 0]
    expected = slow_forward(tensors, CLASSES - 1, codes[0, 0].tolist())
    torch.testing.assert_close(found, expected, **CLOSE)
    save_llamagen(tmp_path / "out", lm)
    written = read_safetensors(tmp_path / "out" / "model.safetensors")[0]
    assert all(written[name].equal(tensor) for name, tensor in tensors.items())
    again = load_llamagen(tmp_path / "out")
    assert again.config == lm.config
    with pytest.raises(ValueError, match="without dropping its label"):
        ClassifierFreeGuidance(2.0, lm, 4)


def test_a_class_table_that_nothing_is_said_of(tmp_path):
    """Released models have 1000 classes and one row more; of other tables no row is lost, and that is said."""
    tensors = make_tensors()
    with pytest.warns(UserWarning, match=f"has {CLASSES + 1} rows; .* set num_classes {CLASSES} in the file"):
        lm = load_llamagen(write(tmp_path, tensors, num_classes=None))
    assert (lm.config.conditions[0].classes, lm.config.conditions[0].dropout) == (CLASSES + 1, 0.0)
    released = torch.zeros(1001, D)
    lm = load_llamagen(write(tmp_path, tensors | {"cls_embedding.embedding_table.weight": released}, num_classes=None))
    assert (lm.config.conditions[0].classes, lm.config.conditions[0].dropout) == (1000, 0.1)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"num_classes": 3}, "num_classes 3 with class_dropout_prob 0.1 makes a class table of 4 rows, but it has 6"),
        ({"num_classes": CLASSES, "class_dropout_prob": 0}, "makes a class table of 5 rows, but it has 6"),
        ({"num_classes": "5"}, "num_classes must be a whole number, found '5'"),
        ({"class_dropout_prob": "x"}, "class_dropout_prob must be from 0 to below 1, found 'x'"),
        ({"class_dropout_prob": 1.5}, "class_dropout_prob must be from 0 to below 1, found '1.5'"),
        ({"n_head": 5}, "config.json: .*width 24 is not a multiple of heads 5"),
        ({"image_size": 3}, "config.json: rows: Input should be greater than 0"),
    ],
)
def test_config_files_that_cannot_be_used_are_refused_in_one_line(said, message, tmp_path):
    with pytest.raises(ValueError, match=message) as refused:
        load_llamagen(write(tmp_path, make_tensors(), **said))
    assert "\n" not in str(refused.value)


def test_a_tiny_model_is_refused_in_one_line(tmp_path):
    small = {"tok_embeddings.weight": (CODES, 4), "cls_embedding.embedding_table.weight": (CLASSES + 1, 4)}
    small |= {"layers.0.feed_forward.w1.weight": (8, 4), "layers.0.attention.wqkv.weight": (12, 4)}
    with pytest.raises(ValueError, match="config.json: width: Input should be greater than or equal to 8") as refused:
        load_llamagen(write(tmp_path, {name: torch.zeros(shape) for name, shape in small.items()}, n_head=2))
    assert "\n" not in str(refused.value)
