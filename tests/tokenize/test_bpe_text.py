"""The text tokenizer `bpe`: ids of the package tokenizers and of a slow loop, round trips, and what is refused."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from tessera.configs.schema import ConfigError, check_config
from tessera.tokenize.text import tokenizer_json
from tessera.tokenize.text.bpe_text import BPE_FILE, BPEText, BPETextConfig
from tessera.tokenize.text.byte_text import ByteTextConfig
from tessera.tokenize.text.character_text import CharacterTextConfig
from tessera.tokenize.text.phoneme_text import PhonemeTextConfig
from tessera.tokenize.text.registry import load_text, make_text
from tessera.tokenize.text.sentencepiece_text import SentencePieceConfig

SPECIALS = ("<|end|>", "<|ending|>", "<|début|>", "[日本]")
WORDS = "low lower lowest new newer newest wide wider it's Zürich 日本語 31 3.5 (of) don't end".split()
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RANGES = [(32, 0x7F), (32, 0x300), (0x300, 0xD800), (0xE000, 0x2FFFF), (0, 32), (0x1F300, 0x1FAFF)]


def sentences(count: int = 120) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(count)]


def random_text(draw: random.Random, specials=SPECIALS) -> str:
    """Words, special tokens, white space and any characters of Unicode, not all of it white space."""
    parts = [
        draw.choice([*WORDS, *specials, " ", "  ", "\n", "\t", chr(draw.randrange(*draw.choice(RANGES)))])
        for _ in range(draw.randint(1, 15))
    ]
    return "".join(parts) + "x"


def trained(tokenizer: Tokenizer, size: int, added: list[AddedToken], alphabet: list[str]) -> Tokenizer:
    trainer = BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.add_tokens(added)
    return tokenizer


def special(text: str, **settings) -> AddedToken:
    return AddedToken(text, special=True, normalized=False, **settings)


def llama_3() -> Tokenizer:
    """Split by an expression, a token at the start of each text, and padding and truncation, which are left out."""
    made = Tokenizer(BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    made.decoder = decoders.ByteLevel()
    trained(made, 320, [special("<|begin|>"), *map(special, SPECIALS)], pre_tokenizers.ByteLevel.alphabet())
    template = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", made.token_to_id("<|begin|>"))]
    )
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    made.enable_truncation(4)
    made.enable_padding(length=50)
    return made


def qwen() -> Tokenizer:
    """Text in the normal form NFC, special tokens and added ones that are not special, and an end."""
    made = Tokenizer(BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    added = [*map(special, SPECIALS), AddedToken("<tool>", normalized=False), AddedToken("lowest", single_word=True)]
    trained(made, 300, added, pre_tokenizers.ByteLevel.alphabet())
    made.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", made.token_to_id("<|end|>"))]
    )
    return made


def llama_2() -> Tokenizer:
    """SentencePiece's BPE as a tokenizer.json: no byte-level characters, unknown characters as bytes."""
    made = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    alphabet = sorted(set("".join(WORDS)) | {"▁"})
    trainer = BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=alphabet,
        special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
    )
    made.train_from_iterator([word for text in sentences() for word in text.split()], trainer)
    return made


def plain() -> Tokenizer:
    """Characters without bytes: others are one unknown piece."""
    return trained(Tokenizer(BPE(unk_token="x")), 60, [special("<|end|>")], ["x"])


FILES = {"llama-3": llama_3, "qwen": qwen, "llama-2": llama_2, "plain": plain}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    for name, make in FILES.items():
        make().save(str(folder / f"{name}.json"))
    return {name: folder / f"{name}.json" for name in FILES}


@pytest.fixture(scope="module")
def learned() -> BPEText:
    return make_text(BPETextConfig(vocab_size=300, specials=SPECIALS), sentences())


@pytest.mark.parametrize("name", FILES)
def test_ids_of_a_file_are_those_of_tokenizers(files, name):
    ours = make_text(BPETextConfig(file=str(files[name])), [])
    theirs = Tokenizer.from_file(str(files[name]))
    theirs.no_truncation()
    theirs.no_padding()
    assert ours.files() == {BPE_FILE: files[name].read_bytes()}
    draw = random.Random(name)
    for _ in range(400):
        text = random_text(draw)
        assert ours.encode(text) == theirs.encode(text).ids, ascii(text)
    for token, number in ours.special_ids().items():
        assert ours.special_id(token) == number == theirs.token_to_id(token)
    assert set(ours.special_ids()) == {token.content for token in theirs.get_added_tokens_decoder().values()}
    names = ours.names_of_ids()
    assert len(names) == ours.vocab_size == len(set(names)) == theirs.get_vocab_size()
    assert [theirs.token_to_id(one) for one in names] == list(range(len(names)))


@pytest.mark.parametrize("name", ["llama-3", "qwen"])
def test_decoding_a_byte_level_file_gives_the_text(files, name):
    ours, draw = make_text(BPETextConfig(file=str(files[name])), []), random.Random(name)
    for _ in range(400):
        text = random_text(draw)
        read = text if name == "llama-3" else normalizers.NFC().normalize_str(text)
        assert ours.decode(ours.encode(text)) == read, ascii(text)
    ids = ours.encode("low<|début|>x")
    inside = ids[1:] if name == "llama-3" else ids[:-1]
    assert ours.decode(inside) == "low<|début|>x", "also without what the file puts around a text"


def test_decoding_another_file_is_left_to_tokenizers(files):
    ours = make_text(BPETextConfig(file=str(files["llama-2"])), [])
    for text in ("low wider", "Zürich  31", "new 🙂"):
        assert ours.decode(ours.encode(text)) == text


def test_learned_pieces_decode_to_the_text(learned):
    draw = random.Random(1)
    assert learned.vocab_size == 300
    for _ in range(400):
        text = random_text(draw)
        ids = learned.encode(text)
        assert all(0 <= one < 300 for one in ids) and learned.decode(ids) == text, ascii(text)
        assert len(ids) <= len(text.encode())
    assert len(learned.encode("lower newest wider")) <= 4
    for _ in range(100):  # any ids are a text, with U+FFFD where they are no UTF-8
        ids = draw.choices(range(300), k=20)
        assert learned.decode(ids) == slow_decode(ids, learned.names_of_ids(), learned.special_ids())


def test_special_tokens_are_one_id_wherever_they_are(learned):
    ids = learned.special_ids()
    assert list(ids) == list(SPECIALS) and list(ids.values()) == [296, 297, 298, 299]
    for one in SPECIALS:
        assert learned.encode(one) == [ids[one]] == [learned.special_id(one)]
        assert learned.encode(f"low{one}low") == [*learned.encode("low"), ids[one], *learned.encode("low")]
        assert learned.decode([ids[one]]) == one
    with pytest.raises(ValueError, match=r"'bpe' has no special token '<\|ed\|>'; did you mean '<\|end\|>'\?"):
        learned.special_id("<|ed|>")
    with pytest.raises(ValueError, match="'bytes' has no special token 'a'; it has none"):
        make_text(ByteTextConfig(), []).special_id("a")
    plain = make_text(BPETextConfig(vocab_size=296), sentences())
    assert plain.names_of_ids() == learned.names_of_ids()[:296], "pieces do not depend on the special tokens"
    with_them = [text.replace("wide", "<|end|>") for text in sentences()]
    without = make_text(BPETextConfig(vocab_size=300, specials=SPECIALS), with_them).names_of_ids()
    assert not any("|" in one for one in without[256:296]), "no pieces of special tokens are learned"


# The slow way: split a text as GPT-2 does, then join the pair that was learned first until there is none.
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@cache
def letters() -> list[str]:
    """GPT-2's character of each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(others)) for byte in range(256)]


def slow_words(text: str) -> list[list[str]]:
    regex = pytest.importorskip("regex")
    return [[letters()[byte] for byte in word.encode()] for word in regex.findall(GPT_2, text)]


def join(word: list[str], pair: tuple[str, str]) -> list[str]:
    joined, i = [], 0
    while i < len(word):
        both = tuple(word[i : i + 2]) == pair
        joined.append("".join(pair) if both else word[i])
        i += 1 + both
    return joined


def slow_learn(texts: list[str], num_ids: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of ids and merges: of the pairs that are seen most, the one of the lowest ids; none that is seen once."""
    words = Counter(tuple(word) for text in texts for word in slow_words(text))
    names, merges = sorted(letters()), []
    while len(names) < num_ids:
        seen = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                seen[pair] += count
        pair = min(seen, key=lambda pair: (-seen[pair], names.index(pair[0]), names.index(pair[1])), default=None)
        if pair is None or seen[pair] < 2:
            break
        merges.append(pair)
        names += [] if "".join(pair) in names else ["".join(pair)]
        words = Counter({tuple(join(list(word), pair)): count for word, count in words.items()})
    return names, merges


def slow_encode(text: str, names: list[str], merges: list[tuple[str, str]]) -> list[int]:
    ids = []
    for word in slow_words(text):
        while pairs := [pair for pair in pairwise(word) if pair in merges]:
            word = join(word, min(pairs, key=merges.index))
        ids += [names.index(piece) for piece in word]
    return ids


def slow_decode(ids, names, specials) -> str:
    place = {letter: byte for byte, letter in enumerate(letters())}
    text, waiting = "", b""
    for one in ids:
        if names[one] in specials:
            text, waiting = text + waiting.decode(errors="replace") + names[one], b""
        else:
            waiting += bytes(place[letter] for letter in names[one])
    return text + waiting.decode(errors="replace")


@pytest.mark.parametrize("size", [256, 270, 330, 2000])
def test_pieces_and_ids_are_those_of_a_slow_loop(size):
    draw = random.Random(size)
    texts = sentences(25) + [random_text(draw, ()) for _ in range(10)]
    names, merges = slow_learn(texts, size)
    text = make_text(BPETextConfig(vocab_size=size), texts)
    assert list(text.names_of_ids()) == names and text.vocab_size == len(names)
    for _ in range(50):
        one = random_text(draw, ())
        assert text.encode(one) == slow_encode(one, names, merges), ascii(one)


def test_the_same_sentences_give_the_same_bytes(learned):
    for _ in range(3):
        assert make_text(learned.config, sentences()).model == learned.model


@pytest.mark.slow
def test_they_do_in_other_processes_with_other_numbers_of_threads(learned):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_bpe_text import *\n"
        "sys.stdout.buffer.write(make_text(BPETextConfig(vocab_size=300, specials=SPECIALS), sentences()).model)"
    )
    for threads in ("1", "3"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        command = [sys.executable, "-c", code, str(Path(__file__).parent)]
        assert subprocess.run(command, env=environment, capture_output=True, check=True).stdout == learned.model


@pytest.mark.parametrize("name", ["learned", *FILES])
def test_saved_and_loaded(learned, files, name, tmp_path):
    text = learned if name == "learned" else make_text(BPETextConfig(file=str(files[name]), vocab_size=999), [])
    text.save(tmp_path)
    again = load_text(tmp_path, text.config)
    assert again.files() == text.files() and again.names_of_ids() == text.names_of_ids()
    assert again.encode("lower <|end|>") == text.encode("lower <|end|>")
    if name != "learned":
        assert text.vocab_size == 999 == len(set(text.names_of_ids())) and text.names_of_ids()[-1] == "<row 998>"
        assert text.decode([998]) == ""


def test_words_and_lengths():
    text = make_text(BPETextConfig(vocab_size=300, normalise="words", max_characters=20), sentences())
    assert text.decode(text.encode("LOW, 31!")) == "low three one" and text.spell("31!") == "three one!"
    assert text.known_characters() is None and text.num_characters("LOW 3!") == len("low three")
    with pytest.raises(ValueError, match="has 21 characters, the limit is 20"):
        text.encode("x" * 21)
    for nothing in ("", " ", "?!"):
        with pytest.raises(ValueError, match="is empty"):
            text.encode(nothing)
    with pytest.raises(ValueError, match="not Unicode"):
        text.encode("a \udc80")
    with pytest.raises(ValueError, match="text id 300 is out of range, this text tokenizer has 300 ids"):
        text.decode([300])


def test_what_a_file_cannot_read_is_named(files, learned):
    plain = make_text(BPETextConfig(file=str(files["plain"])), [])
    assert plain.unread("low 日 🙂 wide 🙂") == ["🙂"]
    for other in (learned, make_text(BPETextConfig(file=str(files["llama-2"])), [])):
        assert other.unread("low 日 🙂\x00\u0301") == []


def test_text_of_which_nothing_is_read_is_refused(files):
    described = json.loads(files["plain"].read_text())
    described["model"]["unk_token"] = None
    text = BPEText(BPETextConfig(file="x"), json.dumps(described).encode(), "x")
    assert text.unread("low 🙂") == ["🙂"] and text.encode("low🙂") == text.encode("low")
    for act in (text.encode, text.prepare):
        with pytest.raises(ValueError, match="nothing of the text '🙂' has an id"):
            act("🙂")


def test_kinds_that_decode_and_the_one_that_cannot():
    said = "low lower newest"
    for config in (ByteTextConfig(), SentencePieceConfig(vocab_size=60), CharacterTextConfig()):
        text = make_text(config, sentences())
        assert text.decode(text.encode(said)) == said
    phonemes = make_text(PhonemeTextConfig(), [])
    with pytest.raises(ValueError, match="text tokenizer 'phonemes' has no decode: its ids are sounds"):
        phonemes.decode(phonemes.encode("low"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "needs a vocab_size, to be learned from the corpus, or the file of one"),
        ({"vocab_size": 255}, "vocab_size 255 is too small for 256 bytes and 0 special tokens"),
        ({"vocab_size": 257, "specials": ["<a>", "<b>"]}, "too small for 256 bytes and 2 special tokens"),
        ({"vocab_size": 1_000_001}, "vocab_size"),
        ({"vocab_size": 300, "specials": ["<a>", "<a>"]}, "specials: the special tokens must be different"),
        ({"vocab_size": 300, "specials": [""]}, "specials: a special token has 1 to 256 characters and no white space"),
        ({"vocab_size": 300, "specials": ["<a> "]}, "specials: a special token has 1 to 256 characters and no white"),
        ({"vocab_size": 3000, "specials": [str(i) for i in range(1001)]}, "specials"),
        ({"vocab_size": 300, "specials": ["<a>"], "normalise": "words"}, "would take special tokens apart"),
        (
            {"file": "a.json", "specials": ["<a>"]},
            "special tokens of text kind 'bpe' with a file are those of the file",
        ),
        ({"vocab_sise": 300}, "unknown key; did you mean 'vocab_size'"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        check_config({"kind": "bpe", **settings}, BPETextConfig)
    assert "\n" not in str(error.value)


def test_corpora_that_are_refused():
    with pytest.raises(ValueError, match="no sentences to train on"):
        make_text(BPETextConfig(vocab_size=300), ["", "  "])
    with pytest.raises(ValueError, match=r"the special token 'a' is also a piece of text; name it like <\|a\|>"):
        make_text(BPETextConfig(vocab_size=300, specials=("a",)), sentences())


def described(**changes) -> dict:
    """A small file: ids 0 to 2 for a, b and ab."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    model |= changes.pop("model", {})
    stages = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", "added_tokens": [], **stages, "model": model, **changes}


def nested(step: dict, depth: int) -> dict:
    for _ in range(depth):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
TEMPLATE = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 1001, "pair": []}
BAD_FILES = [
    (b"", r"not valid JSON"),
    (b"\x80\x02}q\x00.", r"not valid JSON \(not UTF-8"),
    (b"GIF89a", "not valid JSON"),
    (json.dumps(described()).encode()[:-40], "not valid JSON"),
    (b"[" * 5000, "not valid JSON"),
    (b"[" * 2_000_000, "lists and mappings or .* values"),
    ([], "holds no model"),
    ({"model": None}, "holds no model"),
    ({"type": "Unigram", "vocab": [["a", 0.0]]}, "holds no model"),
    (described(model={"type": "Unigram"}), 'its model is of type "Unigram"; .* reads type "BPE" alone'),
    (described(model={"type": "WordPiece"}), 'of type "WordPiece"'),
    (described(model={"type": ["BPE"]}), r'of type \["BPE"\]'),
    ({"model": {"vocab": {"a": 0}}}, "of type null"),
    (described(model={"dropout": 0.1}), "its model has dropout, .* set model.dropout to null"),
    (described(model={"vocab": {}}), "model.vocab holds no pieces"),
    (described(model={"vocab": [["a", 0.0]]}), "model.vocab holds no pieces"),
    (described(model={"vocab": {"a": -1}}), "an id is -1, expected 0 to 999999"),
    (described(model={"vocab": {"a": 4_000_000_000}}), "an id is 4000000000, expected"),
    (described(model={"vocab": {"a": True}}), "an id is true"),
    (described(model={"vocab": {"a" * 4097: 0}}), "a piece has 4097 characters, the limit is 4096"),
    (described(added_tokens=[{"content": "<" * 5000}]), "a piece has 5000 characters"),
    (described(model={"merges": [["a", "z"]]}), r"the package tokenizers can use \(Token `z`"),
    (described(model={"merges": 3}), "not a tokenizer.json that the package tokenizers can use"),
    (described(version="2.0"), "can use .*version '2.0'"),
    (described(pre_tokenizer={"type": "Split"}), "can use"),
    (described(pre_tokenizer={"type": "FixedLength", "length": 0}), "can use .*must be non-zero"),
    (described(normalizer={"type": "Sequence", "normalizers": [DOUBLE] * 10}), "normalizer and pre_tokenizer may make"),
    (described(normalizer=nested(DOUBLE | {"content": "a" * 1001}, 300)), "more than 1000 times as long, the limit"),
    (described(normalizer={**DOUBLE, "pattern": {"Regex": ""}, "content": "a" * 1000}), "more than 1000 times"),
    (described(normalizer={"type": "Prepend", "prepend": "a" * 1000}), "more than 1000 times"),
    (
        described(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 6}),
        "more than 1000 times",
    ),
    (described(post_processor=TEMPLATE), "its post_processor may make"),
    (described(decoder=DOUBLE | {"content": "a" * 1001}), "its decoder may make"),
]


@pytest.mark.parametrize("number", range(len(BAD_FILES)))
def test_a_bad_file_is_refused_in_one_line(number, tmp_path):
    content, message = BAD_FILES[number]
    path = tmp_path / "t.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    (tmp_path / BPE_FILE).write_bytes(path.read_bytes())
    for place, act in (
        (path, lambda: make_text(BPETextConfig(file=str(path)), [])),
        (tmp_path / BPE_FILE, lambda: load_text(tmp_path, BPETextConfig(vocab_size=300))),
    ):
        with pytest.raises(ValueError, match=message) as error:
            act()
        assert str(error.value).startswith(f"{place}: ") and "\n" not in str(error.value)
        assert len(str(error.value)) < len(str(place)) + 400


def test_places_of_files_that_are_refused(tmp_path, learned, files):
    with pytest.raises(FileNotFoundError, match=r"none.json: no such file; text: {kind: bpe, file: ...} names"):
        make_text(BPETextConfig(file=str(tmp_path / "none.json")), [])
    with pytest.raises(ValueError, match=r"is a folder; name the tokenizer.json in it"):
        make_text(BPETextConfig(file=str(tmp_path)), [])
    with pytest.raises(FileNotFoundError, match=f"{BPE_FILE}: no such file; the text tokenizer 'bpe' needs it"):
        load_text(tmp_path, learned.config)
    for name in (BPE_FILE, "t.json"):
        with open(tmp_path / name, "wb") as file:
            file.truncate((64 << 20) + 1)  # a hole, which takes no room
    for act in (
        lambda: load_text(tmp_path, learned.config),
        lambda: make_text(BPETextConfig(file=str(tmp_path / "t.json")), []),
    ):
        with pytest.raises(ValueError, match="json: 67108865 bytes, the limit is 67108864"):
            act()
    with pytest.raises(ValueError, match=r"has \d+ ids, but the model's table of texts has 99 rows; raise vocab_size"):
        make_text(BPETextConfig(file=str(files["qwen"]), vocab_size=99), [])


def test_cut_files_are_refused(learned):
    draw = random.Random(0)
    for cut in draw.sample(range(len(learned.model)), 40):
        with pytest.raises(ValueError, match="here: not valid JSON"):
            BPEText(learned.config, learned.model[:cut], "here")


def test_a_panic_of_the_package_is_a_plain_error(tmp_path):
    """An expression that would try forever is given up by the package, which panics."""
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    text = BPEText(BPETextConfig(file="x"), json.dumps(described(pre_tokenizer=split)).encode(), "here")
    assert text.encode("ab") == [2]
    with pytest.raises(ValueError, match="here: not a tokenizer.json that the package tokenizers can use .*limit"):
        text.encode("a" * 30 + "b")


STEPS = [
    *({"type": kind} for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel")),
    *(
        {"type": "Replace", "pattern": {"String": a}, "content": b}
        for a, b in {"a": "bcd", "bc": "aa", "ab": ""}.items()
    ),
    *({"type": "Replace", "pattern": {"Regex": a}, "content": b} for a, b in {"(?=a)": "xy", "[ab]": "cc"}.items()),
    {"type": "Prepend", "prepend": "abc"},
    {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True},
    {"type": "Strip", "strip_left": True, "strip_right": False},
]


@pytest.mark.parametrize("seed", range(3))
def test_no_text_grows_more_than_foreseen(seed):
    draw = random.Random(seed)
    for _ in range(100):
        steps = draw.choices(STEPS, k=draw.randint(1, 3))
        tree = {"type": "Sequence", "normalizers": [nested(step, draw.randint(0, 2)) for step in steps]}
        bound = 1
        for step in tokenizer_json._steps(tree):
            bound *= max(1, tokenizer_json._growth(step, "normalizer"))
        made = Tokenizer.from_str(json.dumps(described(normalizer=tree)))
        text = random_text(draw, ("ﷺ", "ΐ", "İ", "日" * 9, "ab" * 9, "a" * 20))
        assert len(made.normalizer.normalize_str(text)) < bound * (len(text) + 1), (steps, ascii(text))


def test_without_the_package(monkeypatch, learned, tmp_path):
    learned.save(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for act in (lambda: make_text(learned.config, sentences()), lambda: load_text(tmp_path, learned.config)):
        with pytest.raises(ImportError, match=r"'bpe' needs the package tokenizers: pip install 'tessera-lm\[bpe\]'"):
            act()
