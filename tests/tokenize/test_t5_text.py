"""The text tokenizer of T5: ids of transformers, and what is refused."""

import random

import pytest
import sentencepiece

from tessera.configs.files import read_json
from tessera.tokenize.text.registry import load_text, make_text
from tessera.tokenize.text.sentencepiece_json import sentencepiece_of_json
from tessera.tokenize.text.t5_text import T5Text, T5TextConfig

WORDS = "the quick brown fox jumps over a lazy dog while café naïve １２ ﬁne it's 3.5 % (of) them".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a model that normalizes as T5's does."""
    path = tmp_path_factory.mktemp("pieces")
    rng = random.Random(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(rng.choices(WORDS, k=9)) for _ in range(200)]),
        model_prefix=str(path / "spiece"), vocab_size=70, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        hard_vocab_limit=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("made_of", ["spiece.model", "tokenizer.json"])
def test_ids_are_those_of_transformers(folder, made_of, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.T5Tokenizer.from_pretrained(folder, extra_ids=5)
    model = (folder / "spiece.model").read_bytes()
    if made_of == "tokenizer.json":
        theirs.save_pretrained(tmp_path)
        model = sentencepiece_of_json(read_json(tmp_path / made_of), "here")
    ours = T5Text(T5TextConfig(vocab_size=100), model, "here")
    rng = random.Random(1)
    texts = [" ".join(rng.choices([*WORDS, "unknown", "Ω~", "x", "\t", " "], k=rng.randint(1, 12))) for _ in range(300)]
    texts = [text for text in texts if text.strip()]
    for text in [*texts, "  two   spaces ", "a\nb", "~", "~~ ~a"]:
        assert ours.encode(text) == theirs(text)["input_ids"], text
    assert ours.vocab_size == 100 and len(set(ours.names_of_ids())) == 100
    assert ours.decode(ours.encode("the quick fox")) == "the quick fox"
    assert ours.unread("a ~ fox Ω") == ["~", "Ω"] and ours.unread("a lazy dog") == []


def test_saved_and_loaded(folder, tmp_path):
    config = T5TextConfig(vocab_size=80)
    ours = T5Text(config, (folder / "spiece.model").read_bytes(), "here")
    ours.save(tmp_path)
    assert load_text(tmp_path, config).encode("a lazy dog") == ours.encode("a lazy dog")


def test_what_is_refused(folder):
    model = (folder / "spiece.model").read_bytes()
    with pytest.raises(ValueError, match="pieces, but the model's table of texts has 9 rows"):
        T5Text(T5TextConfig(vocab_size=9), model, "here")
    with pytest.raises(ValueError, match="here: not a SentencePiece model"):
        T5Text(T5TextConfig(), b"x", "here")
    with pytest.raises(ValueError, match="kind 't5' comes with a public model and is not learned from a corpus"):
        make_text(T5TextConfig(), ["one"])
    for wrong in ([], {"model": {"type": "BPE", "vocab": {}}}, {"model": {"vocab": [["a"]]}}):
        with pytest.raises(ValueError, match="here: holds no pieces of a Unigram model"):
            sentencepiece_of_json(wrong, "here")
    with pytest.raises(ValueError, match="here: its table of normalization is damaged"):
        sentencepiece_of_json({"model": {"vocab": []}, "normalizer": {"precompiled_charsmap": "a"}}, "here")
    with pytest.raises(ValueError, match="the text ' ' is empty"):
        T5Text(T5TextConfig(), model, "here").encode(" ")
