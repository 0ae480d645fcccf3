"""Texts to read: sentences of WordNet, and generated questions, lists, numbers, names, letters and repeated words.

Every text begins with a capital letter, ends with a mark, and has only letters, digits and plain punctuation.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from .wordnet import WordNet

MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SECONDS_PER_LETTER, SECONDS_PER_TEXT = 0.066, 0.3
"""For the estimated length of a text."""

EVERYDAY = (
    "Hello.", "Hello, world!", "Hi there!", "Good morning, {name}.", "Good evening, everyone.", "Good night, {name}.",
    "How are you today?", "I'm fine, thank you.", "Nice to meet you, {name}.", "My name is {name}.",
    "What's your name?", "Where do you live?", "I live in {name}.", "See you tomorrow.", "See you on {day}, {name}.",
    "Thank you very much.", "You're welcome.", "Please open the {noun}.", "Please close the {noun}.",
    "Where is the {noun}?", "Who took my {noun}?", "What time is it?", "It's {time}.", "The train leaves at {time}.",
    "Is it raining again?", "The weather is {adjective} today.", "I don't know.", "I don't want to {verb}.",
    "I'd like to {verb}, please.", "Can you help me?", "Could you please {verb} the {noun}?", "Yes.", "No.",
    "Yes, of course.", "No, thank you.", "Maybe later.", "Wait a moment, please.", "Come with me!",
    "Look at the {noun}!", "What a {adjective} {noun}!", "That is a {adjective} idea.", "How much is the {noun}?",
    "It costs {money}.", "I'm looking for a {adjective} {noun}.", "There is a {noun} in the {noun}.",
    "There are {number} {noun}s on the table.", "He said he would {verb} it.",
    "She told me about the {adjective} {noun}.", "We can't {verb} without you.", "They've never seen a {noun}.",
    "Why did you {verb} the {noun}?", "When will they {verb}?", "Which {noun} is yours?", "Whose {noun} is this?",
    "How many {noun}s do you need?", "Turn left at the {noun}.", "Turn on the light.", "Write it down, please.",
    "Read me a story about a {noun}.", "Speak more slowly.", "Happy birthday, {name}!", "I'm sorry, {name}.",
    "Don't {verb} the {noun}!", "Let's {verb} it together.", "If you {verb} it, I will {verb} it too.",
    "First we {verb}, then we {verb}.", "Is this {adjective} or {adjective}?",
    "The {noun} was more {adjective} than the {noun}.", "You have {number} new messages.",
    "Your meeting with {name} starts at {time}.", "Set a timer for {number} minutes.",
    "The {noun} and the {noun} are {adjective}.", "From {day} to {day}.", "On {date}, we went to {name}.",
)  # fmt: skip


def word(draw: random.Random, words: Sequence[str]) -> str:
    """A word; frequent ones, which come first, are more likely."""
    return words[int(len(words) * draw.random() ** 2)]


def number(draw: random.Random) -> str:
    """A whole number of 1 to 7 digits, in figures; with commas from 4 digits."""
    return f"{draw.randrange(10 ** draw.choice((1, 2, 2, 3, 4, 5, 6, 7))):,}"


def time_of_day(draw: random.Random) -> str:
    """As in "7:30 pm" or "8 o'clock"."""
    hour = draw.randint(1, 12)
    return (
        f"{hour} o'clock"
        if draw.random() < 0.3
        else f"{hour}:{draw.choice((5, 10, 15, 20, 30, 45, 59)):02d} {draw.choice(('am', 'pm'))}"
    )


def date(draw: random.Random) -> str:
    """As in "March 3, 1984"."""
    return f"{draw.choice(MONTHS)} {draw.randint(1, 28)}, {draw.randint(1600, 2030)}"


def money(draw: random.Random) -> str:
    """As in "$25" or "$9.99"."""
    return f"${draw.randint(1, 999)}" if draw.random() < 0.5 else f"${draw.randint(1, 99)}.{draw.randint(1, 99):02d}"


def digits(draw: random.Random, count: int) -> str:
    """Digits spoken one by one: "4 0 7"."""
    return " ".join(str(draw.randrange(10)) for _ in range(count))


def everyday(draw: random.Random, source: WordNet) -> str:
    """An everyday sentence with words filled in."""
    fill: dict[str, Callable[[], str]] = {
        "name": lambda: draw.choice(source.names),
        "noun": lambda: word(draw, source.nouns),
        "verb": lambda: word(draw, source.verbs),
        "adjective": lambda: word(draw, source.adjectives),
        "day": lambda: draw.choice(DAYS),
        "date": lambda: date(draw),
        "time": lambda: time_of_day(draw),
        "money": lambda: money(draw),
        "number": lambda: number(draw),
    }
    return re.sub(r"{(\w+)}", lambda found: fill[found.group(1)](), draw.choice(EVERYDAY))


def numbers(draw: random.Random, source: WordNet) -> str:
    """A sentence about a number, a date, a time, a price or digits."""
    noun, name = word(draw, source.nouns), draw.choice(source.names)
    choices = (
        lambda: f"{number(draw)}.",
        lambda: f"{digits(draw, draw.randint(2, 12))}.",
        lambda: f"My number is {digits(draw, 3)}, {digits(draw, 4)}.",
        lambda: f"{number(draw)} and {number(draw)} make {number(draw)}.",
        lambda: f"The {noun} costs {money(draw)}.",
        lambda: f"It happened on {date(draw)} in {name}.",
        lambda: f"{name} was born in {draw.randint(1500, 2020)}.",
        lambda: f"About {draw.randint(1, 100)}% of the people, or {number(draw)}, agreed.",
        lambda: f"Chapter {draw.randint(1, 60)}, page {draw.randint(1, 900)}.",
        lambda: f"The meeting starts at {time_of_day(draw)} on {draw.choice(DAYS)}.",
        lambda: f"It is {draw.randint(1, 99)}.{draw.randint(1, 99)} meters long.",
        lambda: f"She finished in {draw.choice(('1st', '2nd', '3rd', '4th', '5th', '12th', '21st', '100th'))} place.",
    )
    return draw.choice(choices)()


def listing(draw: random.Random, source: WordNet) -> str:
    """A list of words, names or letters."""
    pool = draw.choice((source.nouns, source.nouns, source.adjectives, source.verbs, source.names))
    items = [word(draw, pool) for _ in range(draw.randint(2, 7))]
    start = draw.choice(("", "", "We need ", "There were ", "Remember: ", "I saw "))
    text = start + ", ".join(items[:-1]) + draw.choice((", ", " and ", ", and ", " or ")) + items[-1]
    return text[0].upper() + text[1:] + draw.choice("...?!")


def single(draw: random.Random, source: WordNet) -> str:
    """One or two words."""
    pool = draw.choice((source.nouns, source.verbs, source.adjectives, source.names))
    text = word(draw, pool) if draw.random() < 0.7 else f"{word(draw, source.adjectives)} {word(draw, source.nouns)}"
    return text[0].upper() + text[1:] + draw.choice("...?!")


def letters(draw: random.Random, source: WordNet) -> str:
    """Letters, or a word that is spelled."""
    if draw.random() < 0.4:
        return draw.choice(LETTERS) + "."
    if draw.random() < 0.5:
        return ", ".join(draw.choice(LETTERS) for _ in range(draw.randint(2, 8))) + "."
    name = draw.choice(source.names)
    return f"{name}, {', '.join(name.upper())}."


def repeated(draw: random.Random, source: WordNet) -> str:
    """A word, or two, several times: "No no no no." """
    text = draw.choice(
        ("no", "yes", "very", "ha", "go", "well", "hey", "now", word(draw, source.nouns), word(draw, source.verbs))
    )
    if draw.random() < 0.3:
        text = f"{text} {word(draw, source.nouns)}"
    text = draw.choice((" ", " ", ", ")).join([text] * draw.randint(2, 6))
    if draw.random() < 0.3:
        text = f"It was {text}, said {draw.choice(source.names)}"
    return text[0].upper() + text[1:] + draw.choice("..!?")


def definition(draw: random.Random, noun: str, meaning: str) -> str:
    """A sentence with the definition of a noun."""
    forms = (
        "{noun} means {meaning}.", "{noun}: {meaning}.", "They call it {noun}, {meaning}.",
        "What is {noun}? It is {meaning}.", "{meaning} is called {noun}.",
        "Do you know the word {noun}? It means {meaning}.", "By {noun} we mean {meaning}.",
        "If you look up {noun}, you will find: {meaning}.", "{noun} is {meaning}, as you know.",
    )  # fmt: skip
    text = draw.choice(forms).format(noun=noun, meaning=meaning)
    return text[0].upper() + text[1:]


def joined(draw: random.Random, first: str, second: str) -> str:
    """Two example sentences as one longer text, or one as a question or reported speech."""
    bare, other = first.rstrip(".?!"), second.rstrip(".?!")
    low, low_other = bare[0].lower() + bare[1:], other[0].lower() + other[1:]
    if re.match(r"I\b|[A-Z]\w*'", bare):
        low = bare
    if re.match(r"I\b|[A-Z]\w*'", other):
        low_other = other
    forms = (
        f"{bare}, and {low_other}.", f"{bare}, but {low_other}.", f"{bare}; {low_other}.", f"{first} {second}",
        f"{bare}, because {low_other}.", f"Is it true that {low}?", f"Did she really say: {low}?", f"Why {low}?",
        f"He asked me whether {low} or {low_other}.", f"When {low}, {low_other}.", f"{bare}, isn't it?",
    )  # fmt: skip
    return draw.choice(forms)


SHARES = {
    "example": 0.42, "joined": 0.15, "definition": 0.17, everyday: 0.09, numbers: 0.06, listing: 0.04, single: 0.03,
    letters: 0.02, repeated: 0.02,
}  # fmt: skip
"""Share of the texts of each kind."""


class Texts:
    """An endless series of texts without repetition, a function of the seed.

    Args:
        taken: texts that are not used, as by `plain`.
    """

    def __init__(self, source: WordNet, seed: int, taken: set[str]):
        self.draw, self.source, self.taken = random.Random(seed), source, taken
        self.examples = [text for text in source.examples if plain(text) not in taken]
        held = "\n".join(sorted(taken))  # a definition is not read within another sentence either
        self.definitions = [pair for pair in source.definitions if plain(pair[1]) not in held]
        self.draw.shuffle(self.examples)
        self.draw.shuffle(self.definitions)

    def next(self) -> str:
        """The next text."""
        while True:
            (kind,) = self.draw.choices(list(SHARES), list(SHARES.values()))
            text = self._make(kind)
            if plain(text) not in self.taken and len(text) <= 220:
                self.taken.add(plain(text))
                return text

    def _make(self, kind) -> str:
        if kind == "example":
            return self.examples.pop() if len(self.examples) > 1000 else self._joined()
        if kind == "joined":
            return self._joined()
        if kind == "definition":
            return definition(self.draw, *self.draw.choice(self.definitions))
        return kind(self.draw, self.source)

    def _joined(self) -> str:
        return joined(self.draw, self.draw.choice(self.examples), self.draw.choice(self.examples))


def held_out(source: WordNet, seed: int, count: int) -> list[str]:
    """Test sentences of 3 to 30 words, examples and definitions; lengths are spread evenly."""
    draw = random.Random(seed)
    pool = [
        *source.examples,
        *(definition(draw, *pair) for pair in draw.sample(source.definitions, min(5000, len(source.definitions)))),
    ]
    draw.shuffle(pool)
    by_length: dict[int, list[str]] = {}
    for text in pool:
        by_length.setdefault(len(text.split()), []).append(text)
    lengths = [size for size in range(3, 31) if by_length.get(size)]
    found: list[str] = []
    while len(found) < count:
        size = lengths[len(found) % len(lengths)]
        if by_length[size]:
            found.append(by_length[size].pop())
        else:
            lengths.remove(size)
    return found


def plain(text: str) -> str:
    """The words alone, in lower case: texts that differ only in marks are the same."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def estimated_seconds(text: str) -> float:
    """Rough length of a text when read; a digit counts as four letters."""
    return SECONDS_PER_TEXT + SECONDS_PER_LETTER * (len(text) + 3 * sum(letter.isdigit() for letter in text))
