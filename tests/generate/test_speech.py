"""Long texts: pieces that go on from each other, made again where they went wrong, streamed and whole alike."""

import pytest
import torch
from tiny_models import save_tiny_models

from tessera.configs.schema import check_config
from tessera.generate.loading import load
from tessera.generate.long_form.speech import make_chunks, shared_out, split_into_chunks
from tessera.generate.long_form.text_splitting import split_text
from tessera.generate.model import Model
from tessera.generate.result import GenerationWarning
from tessera.generate.sampling.counter_rng import derived_seed
from tessera.lm.generation_config import GenerationConfig
from tessera.tokenize.spec import AudioGeometry
from tessera.tokenize.text.byte_text import ByteTextConfig
from tessera.tokenize.text.registry import make_text

TEXT = "one two. three four, five six. seven."
WIDE = {"text_characters": 12, "frames_per_character": [0.1, 2.0]}


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    return load(save_tiny_models(tmp_path_factory.mktemp("models")) / "voices")


def load_again(model, **defaults):
    """The model with other generation defaults."""
    changed = check_config({**model.defaults.model_dump(mode="json"), **defaults}, GenerationConfig)
    return Model(model.lm, model.tokenizer, model.text, model.labels, changed)


def slow_speech(model, text, seed, label, retries, carry="audio", least=0.1, most=2.0, limit=12, prompt=None, fewest=0):
    """Plain calls of generate, piece by piece; (codes [K, T], all well)."""
    pieces = split_text(text, (limit - 1) // 2 if carry == "audio" else limit, longest_word=limit)
    codes, before, well = [], None, True
    shares = shared_out(fewest, [len(piece) for piece in pieces])
    for i, piece in enumerate(pieces):
        together = len(f"{pieces[i - 1]} {piece}") <= limit
        carried = before if carry == "audio" and together else None
        said = piece if carried is None else f"{pieces[i - 1]} {piece}"
        t, low, high = (
            0 if carried is None else carried.shape[1],
            int(least * len(piece)),
            max(shares[i], -int(-most * len(piece) // 1)),
        )
        tries = []
        for attempt in range(retries + 1):
            found = model.generate(
                text=said, label=label, seed=derived_seed(seed, i, attempt), prompt=carried if i else prompt,
                split="off", max_frames=t + high, min_frames=t + shares[i],
            )  # fmt: skip
            own = found.codes[0, :, t:]
            good = found.ended[0] and own.shape[1] >= low
            middle = (max(low, 1) * high) ** 0.5
            ratio = max(own.shape[1], 0.5) / middle
            tries.append((not good, max(ratio, 1 / ratio), attempt, own))
            if good:
                break
        bad, _, _, own = min(tries, key=lambda one: one[:3])
        codes.append(own)
        before = None if bad or not own.shape[1] else own
        well = well and not bad
    return torch.cat(codes, dim=1), well


@pytest.mark.sample(1)
@pytest.mark.parametrize("carry", ["audio", "nothing"])
@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_a_long_text_is_its_pieces(voices, carry, retries, seed):
    call = {"text": TEXT, "label": "star", "seed": seed, "carry": carry, "retries": retries, **WIDE}
    whole = voices.generate(**call)
    codes, well = slow_speech(voices, TEXT, seed, "star", retries, carry)
    assert torch.equal(whole.codes[0], codes) and whole.ended == (well,) and whole.seeds == (seed,)
    assert torch.equal(whole.media[0], voices.tokenizer.decode(whole.codes)[0]), "one decoder, no seam"
    assert torch.equal(torch.cat(list(voices.stream(**call)), dim=1), whole.media[0])


@pytest.mark.sample(1)
@pytest.mark.parametrize("carry", ["audio", "nothing"])
@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("fewest", [0, 9, 31, 90])
def test_what_it_begins_with_and_the_fewest_frames(voices, carry, retries, fewest):
    """The prompt begins the first piece and is part of the sound once; each piece has its share of the frames."""
    torch.manual_seed(fewest)
    prompt = torch.randint(0, 16, (3, 4))
    more = {} if not fewest else {"min_frames": fewest}
    call = {"text": TEXT, "label": "star", "seed": 3, "carry": carry, "retries": retries, **WIDE, **more}
    whole = voices.generate(**call, prompt=prompt)
    codes, well = slow_speech(voices, TEXT, 3, "star", retries, carry, prompt=prompt, fewest=fewest)
    assert torch.equal(whole.codes[0], codes) and whole.ended == (well,)
    assert torch.equal(codes[:, :4], prompt) and codes.shape[1] >= fewest
    assert torch.equal(torch.cat(list(voices.stream(**call, prompt=prompt)), dim=1), whole.media[0])
    longer = torch.cat([prompt, torch.zeros_like(prompt)], dim=1)
    assert torch.equal(voices.generate(**call, prompt=longer, prompt_frames=4).codes, whole.codes)


def test_frames_are_shared_out_by_size():
    for seed in range(50):
        torch.manual_seed(seed)
        sizes = torch.randint(1, 40, (1 + seed % 7,)).tolist()
        shares = shared_out(seed * 5, sizes)
        assert sum(shares) == seed * 5 and min(shares) >= 0
        assert all(abs(share - seed * 5 * size / sum(sizes)) < 1 for share, size in zip(shares, sizes, strict=True))


@pytest.mark.slow
def test_lists_beside_long_texts(voices, tmp_path):
    """Each sample is as it would be alone: its own label, and its own beginning."""
    prompts = torch.arange(4 * 3 * 2).reshape(4, 3, 2) % 16
    found = voices.generate(text=[TEXT, "one"], label=["star", "7"], n=2, seed=5, prompt=prompts, **WIDE)
    for i, one in enumerate(found):
        text, label = [(TEXT, "star"), ("one", "7")][i // 2]
        alone = voices.generate(text=text, label=label, seed=5 + i, prompt=prompts[i], **WIDE)
        assert torch.equal(one.codes, alone.codes)


@pytest.mark.slow
def test_voices_beside_long_texts(tmp_path):
    clones = load(save_tiny_models(tmp_path / "models") / "clones")
    given = [torch.arange(3 * 4).reshape(3, 4), torch.ones(3, 6, dtype=torch.long)]
    found = clones.generate(text=TEXT, voice=given, seed=5, **WIDE)
    for i, one in enumerate(found):
        alone = clones.generate(text=TEXT, voice=given[i], seed=5 + i, **WIDE)
        assert torch.equal(one.codes, alone.codes)
    assert torch.equal(
        clones.generate(text=TEXT, voice=torch.stack([given[0]] * 2), seed=5, **WIDE)[0].codes, found[0].codes
    )


@pytest.mark.slow
def test_retries_make_good_what_can_be(voices):
    """More samples are well with retries, and those that were well without are unchanged."""
    narrow = {"text_characters": 12, "frames_per_character": [0.3, 1.2], "label": "star", "text": TEXT}
    never = [voices.generate(**narrow, seed=seed, retries=0) for seed in range(6)]
    often = [voices.generate(**narrow, seed=seed, retries=6) for seed in range(6)]
    assert sum(one.ended[0] for one in often) > sum(one.ended[0] for one in never)
    for before, after in zip(never, often, strict=True):
        assert not before.ended[0] or torch.equal(before.codes, after.codes)


def test_a_text_that_is_not_long_is_unchanged(voices):
    plain = voices.generate(text="one two", label=["star", "7"], n=2, seed=3)
    assert torch.equal(voices.generate(text="one two", label=["star", "7"], n=2, seed=3, **WIDE).codes, plain.codes)


@pytest.mark.slow
def test_long_and_short_texts_together(voices):
    texts = ["one", TEXT, "two"]
    together = voices.generate(text=texts, label="star", n=2, seed=5, **WIDE)
    assert together.seeds == tuple(range(5, 11))
    for i, one in enumerate(together):
        alone = voices.generate(text=texts[i // 2], label="star", seed=5 + i, **WIDE)
        assert torch.equal(one.codes, alone.codes) and torch.equal(one.media[0], alone.media[0])


def test_a_limit_on_the_whole(voices):
    for limit in (1, 5, 9):
        found = voices.generate(text=TEXT, label="star", max_frames=limit, **WIDE)
        assert int(found.lengths[0]) <= limit
        assert found.ended == (False,) or int(found.lengths[0]) < limit


def test_a_text_far_too_long_that_is_not_split_is_warned_of(voices):
    call = {"text": TEXT, "label": "star", "text_characters": 12}
    for off in ({"split": "off"}, {"num_frames": 6}):
        with pytest.warns(UserWarning, match="the text has 37 characters, the training examples have at most 12"):
            voices.generate(**call, **off)
    long = torch.zeros(3, 40, dtype=torch.long)
    narrow = {**call, "carry": "nothing", "frames_per_character": [0.1, 2.0]}
    with pytest.raises(
        ValueError,
        match="the prompt has 40 frames, .* 'one two.', begins with the prompt and has a capacity of 16 frames",
    ):
        voices.generate(**narrow, prompt=long)
    with pytest.raises(
        ValueError, match=r"has a capacity of 5 frames; shorten the prompt \(prompt_frames\), or set split to 'off'"
    ):
        voices.stream(**narrow, prompt=long, max_frames=5)
    with pytest.raises(ValueError, match=r"min_frames must be from 0 to max_frames \(4\), found 5"):
        voices.stream(**call, min_frames=5, max_frames=4)
    with pytest.raises(ValueError, match="the prompt has 3 rows for 2 samples"):
        voices.generate(**call, n=2, prompt=long[None].expand(3, -1, -1))
    with pytest.raises(ValueError, match="2 labels but 3 texts"):
        voices.generate(text=[TEXT, "a", "b"], label=["star", "7"], **WIDE)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3, 6])
def test_without_a_voice_the_seed_chooses_one_for_all_pieces(voices, seed):
    """Where nothing is carried over, each piece would choose its own."""
    call = {"text": TEXT, "seed": seed, "carry": "nothing", **WIDE}
    found = voices.generate(**call)
    assert torch.equal(found.codes, voices.generate(**call, label=seed % 4).codes)
    assert torch.equal(torch.cat(list(voices.stream(**call)), dim=1), found.media[0])


def test_warnings_stand_in_the_result(voices):
    call = {"text": TEXT, "label": "star", "text_characters": 12, "num_frames": 6}
    with pytest.warns(GenerationWarning) as issued:
        found = voices.generate(**call, n=2)
        list(voices.stream(**call))
    assert len(found.warnings) == 1 and "training examples have at most 12" in found.warnings[0]
    assert found[1].warnings == found.warnings
    assert [str(one.message) for one in issued] == [*found.warnings] * 2
    assert all(one.filename == __file__ for one in issued)  # they point at the caller's line
    assert voices.generate(text="one.", label="star", num_frames=6).warnings == ()


@pytest.mark.sample(8)
@pytest.mark.parametrize("carry", ["audio", "nothing"])
@pytest.mark.parametrize("limit", [5, 28])
@pytest.mark.parametrize(
    "text",
    [
        "5551234567",
        "Call 5551234567 or 3.14159265358979, now.",
        "see https://www.example.com/a/very-long_path?with=things&more=1234567890",
        "1.2.3.4.5.6.7.8.9.10.11.12",
        "pneumonoultramicroscopicsilicovolcanoconiosis",
    ],
)
def test_no_piece_is_longer_as_read_than_the_model_has_learned(text, limit, carry):
    reader = make_text(ByteTextConfig(normalise="words"), [])
    chosen = GenerationConfig(text_characters=limit, carry=carry)
    notes: list[str] = []
    pieces = split_into_chunks(text, reader, chosen, False, True, notes)
    geometry = AudioGeometry(sample_rate=100, channels=1, samples_per_frame=4)
    made = make_chunks(pieces, reader.encode, reader.num_characters, carry == "audio", geometry, None, limit=limit)
    assert len(pieces) > 1 and max(len(piece.joined_ids or piece.text_ids) for piece in made) <= limit  # ids are bytes
    assert carry == "nothing" or limit == 5 or len(pieces) == 2 or any(piece.joined_ids for piece in made[1:])
    assert "".join(map(reader.read, pieces)).replace(" ", "") == reader.read(text).replace(" ", "")
    if max(map(len, reader.read(text).split())) <= limit:
        assert not notes and " ".join(map(reader.read, pieces)) == reader.read(text)  # no word is cut that fits
    else:
        assert len(notes) == 1 and "will be split" in notes[0]


def test_what_was_never_read_is_named_once(voices):
    voices = load_again(voices, text_seen={"characters": "oneasitwa .", "words": ["one", "two"]})
    call = {"text": ["one two", "six two"], "label": "star", "num_frames": 4}
    with pytest.warns(GenerationWarning, match="not trained on the word 'six' or the character 'x'") as issued:
        found = voices.generate(**call, n=2)
    assert [str(one.message) for one in issued] == list(found.warnings)
    assert voices.generate(text="two one", label="star", num_frames=4).warnings == ()


@pytest.mark.slow
def test_no_end_before_the_fewest_frames_a_text_takes(voices):
    """A prompt, or a bad draw, must not make the model end before it can have said the text."""
    model = load_again(voices, frames_per_character=[2.0, 9.0], max_frames=60)
    for seed in range(6):
        call = {"text": "one two", "label": "star", "seed": seed}
        found = model.generate(**call)
        assert int(found.lengths[0]) >= 14 and found.warnings == ()
        assert torch.equal(torch.cat(list(model.stream(**call)), dim=1), found.media[0])
        several = model.generate(text=["one two", "one"], label="star", seed=seed)
        assert min(several.lengths.tolist()) >= 6  # of the shortest text
        assert int(model.generate(**call, max_frames=5).lengths[0]) <= 5
    early = [model.generate(text="one two", label="star", seed=seed, min_frames=1) for seed in range(20)]
    assert any(int(one.lengths[0]) < 14 for one in early)
    for one in early:
        assert (len(one.warnings) == 1) == (int(one.lengths[0]) < 14 and one.ended[0])
        assert not one.warnings or "shorter than the text needs" in one.warnings[0]
