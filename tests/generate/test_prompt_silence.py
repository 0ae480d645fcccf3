"""Silence at the ends of prompts and voices: left out, said, or refused."""

import pytest
import torch
from tiny_models import save_tiny_models

from tessera.generate.loading import load
from tessera.generate.requests.prompt_silence import KEPT, trim_silence
from tessera.generate.result import GenerationWarning

RATE = 1000


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = save_tiny_models(tmp_path_factory.mktemp("models"))
    return {name: load(folder / name) for name in ("voices", "clones")}


def tone(seconds, rate=RATE, channels=1):
    return 0.3 * torch.sin(torch.arange(round(seconds * rate)) * 0.7).expand(channels, -1)


@pytest.mark.sample(16)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("lead", [0.0, 0.05, 0.5, 3.0])
@pytest.mark.parametrize("tail", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("floor", [0.0, 1e-3])
def test_ends_are_cut_to_what_recordings_have(channels, lead, tail, floor):
    sizes = [round(lead * RATE), RATE, round(tail * RATE)]
    draw = torch.Generator().manual_seed(0)
    media = floor * torch.randn(channels, sum(sizes), generator=draw)
    media[:, sizes[0] : sizes[0] + RATE] += tone(1.0, channels=channels)
    found = trim_silence(media, RATE)
    first = max(0, sizes[0] - round(KEPT * RATE))
    assert found.media is not None
    length = min(sizes[0], round(KEPT * RATE)) + RATE + min(sizes[2], round(KEPT * RATE))
    assert abs(found.media.shape[1] - length) <= 20  # one step
    assert torch.equal(found.media[:, 40:200], media[:, first + 40 : first + 200]) or lead * RATE % 20
    assert (found.note is None) == (max(lead, tail) < 0.2)
    if lead > 0.2:
        assert "begins with" in found.note
    if tail > 0.2:
        assert "ends with" in found.note
    assert torch.equal(trim_silence(found.media, RATE).media, found.media)


def test_pauses_inside_and_quiet_speech_stay():
    pause = torch.cat([tone(0.5), torch.zeros(1, RATE), tone(0.5)], dim=1)
    assert torch.equal(trim_silence(pause, RATE).media, pause)
    assert torch.equal(trim_silence(0.05 * tone(1.0), RATE).media, 0.05 * tone(1.0))


@pytest.mark.parametrize("media", [torch.zeros(1, 500), 1e-3 * torch.randn(2, 500), torch.zeros(1, 3)])
def test_silence_alone_is_nothing(media):
    found = trim_silence(media, RATE)
    assert found.media is None and "nothing else" in found.note


@pytest.mark.slow
def test_a_silent_prompt_is_left_out_and_said(models):
    model = models["voices"]
    rate, frame = model.spec.geometry.sample_rate, model.spec.geometry.samples_per_frame
    call = {"text": "one", "label": "star", "seed": 3, "num_frames": 6}
    plain = model.generate(**call)
    with pytest.warns(GenerationWarning, match="the prompt has .* s of silence and nothing else, left out"):
        found = model.generate(**call, prompt=torch.zeros(1, 2 * rate))
    assert torch.equal(found.codes, plain.codes) and len(found.warnings) == 1
    sound = torch.cat([torch.zeros(1, rate), tone(0.3, rate), torch.zeros(1, rate)], dim=1)
    kept = trim_silence(sound, rate).media
    kept = kept[:, : kept.shape[1] // frame * frame]
    call["num_frames"] = kept.shape[1] // frame + 3
    with pytest.warns(GenerationWarning, match="begins with .* and ends with .* of excess silence, left out"):
        found = model.generate(**call, prompt=sound)
    assert torch.equal(found.codes, model.generate(**call, prompt=kept).codes)
    with pytest.warns(GenerationWarning, match="silence"):
        streamed = torch.cat(list(model.stream(**call, prompt=sound)), dim=1)
    assert torch.equal(streamed, found.media[0])


def test_frames_of_a_prompt_are_counted_before_silence_is_left_out(models):
    model = models["voices"]
    geometry = model.spec.geometry
    sound = torch.cat([torch.zeros(1, geometry.sample_rate), tone(1.0, geometry.sample_rate)], dim=1)
    call = {"text": "one", "label": "star", "num_frames": 60}
    first = round(0.5 * geometry.sample_rate) // geometry.samples_per_frame
    with pytest.warns(GenerationWarning, match="nothing else, left out"):
        model.generate(**call, prompt=sound, prompt_frames=first)
    total = sound.shape[1] // geometry.samples_per_frame
    with pytest.raises(ValueError, match=rf"prompt_frames must be from 1 to the prompt's {total} frames"):
        model.generate(**call, prompt=sound, prompt_frames=total + 1)


def test_codes_are_taken_as_they_are(models):
    model = models["voices"]
    codes = torch.randint(0, 2, (model.lm.num_codebooks, 5))
    found = model.generate(text="one", label="star", prompt=codes, num_frames=8)
    assert torch.equal(found.codes[0, :, :5], codes)


def test_a_silent_voice_is_refused(models):
    rate = models["clones"].spec.geometry.sample_rate
    with pytest.raises(ValueError, match="the voice is silent"):
        models["clones"].generate(text="one", voice=torch.zeros(1, rate), num_frames=3)


@pytest.mark.slow
def test_a_prompt_of_other_words_is_warned_of():
    model = load("speech")
    said = model.generate(text="three one four", label=0, seed=0).codes[0][:, :40]
    assert not model.generate(text="three one four one five", label=0, prompt=said, seed=1).warnings
    with pytest.warns(GenerationWarning, match="does not match the beginning of the text"):
        model.generate(text="happy birthday to you", label=0, prompt=said, seed=1)
