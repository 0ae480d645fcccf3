"""Files of codes: round trips, names, and what is refused."""

import pytest
import torch
from safetensors.torch import load_file

from tessera.configs.files import read_safetensors, write_safetensors
from tessera.tokenize.data.codes_file import CodesItem, read_codes, write_codes
from tessera.tokenize.spec import AudioGeometry, ImageGeometry, TokenSpec

GEOMETRY = AudioGeometry(sample_rate=8000, samples_per_frame=80)
SOUND = TokenSpec(name="fake", cardinalities=(4, 300), geometry=GEOMETRY, fingerprint="f" * 64)
PICTURES = SOUND.model_copy(update={"geometry": ImageGeometry(height=4, width=6, rows=2, columns=3)})


def codes(num_frames: int, seed: int = 0, cardinalities=(4, 300)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, size, (num_frames,), generator=generator) for size in cardinalities])


def test_round_trip(tmp_path):
    items = [CodesItem("a.wav", codes(5), 333), CodesItem("b.wav", codes(1, 1), 80), CodesItem("a.wav", codes(7, 2))]
    write_codes(tmp_path / "x.safetensors", SOUND, items)
    spec, found = read_codes(tmp_path / "x.safetensors", SOUND)
    assert spec == SOUND
    for item, wanted in zip(found, items, strict=True):
        assert (item.name, item.num_samples) == (wanted.name, wanted.num_samples)
        assert item.codes.dtype == torch.long and torch.equal(item.codes, wanted.codes)


def test_one_item_is_a_plain_tensor(tmp_path):
    write_codes(tmp_path / "x.safetensors", SOUND, [CodesItem("a.wav", codes(5))])
    plain = load_file(tmp_path / "x.safetensors")["codes"]
    assert plain.dtype == torch.uint16 and torch.equal(plain.long(), codes(5))


def test_codes_of_another_tokenizer_are_refused_by_name(tmp_path):
    write_codes(tmp_path / "x.safetensors", SOUND, [CodesItem("a.wav", codes(5))])
    other = SOUND.model_copy(update={"name": "mine", "fingerprint": "0" * 64})
    with pytest.raises(ValueError, match=r"x\.safetensors: codes of tokenizer 'fake' \(ffffffffffff\), but 'mine'"):
        read_codes(tmp_path / "x.safetensors", other)
    assert read_codes(tmp_path / "x.safetensors")[0].name == "fake"


def test_nothing_to_write(tmp_path):
    with pytest.raises(ValueError, match="no codes to write"):
        write_codes(tmp_path / "x.safetensors", SOUND, [])


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"codes": torch.zeros(2, 6).to(torch.uint8)},
            r"are torch.uint8 \[2, 6\], 'fake' makes torch.uint16 \[2, frames\]",
        ),
        ({"codes": torch.zeros(3, 6).to(torch.uint16)}, r"\[3, 6\], 'fake' makes"),
        ({"codes": torch.zeros(6).to(torch.uint16)}, r"\[6\], 'fake' makes"),
        ({"codes": torch.full((2, 6), 4).to(torch.uint16)}, r"codes up to \[4, 4\], 'fake' has \[4, 300\]"),
        ({"offsets": torch.tensor([0, 3, 7])}, "offsets do not split 6 frames into 2 items"),
        ({"offsets": torch.tensor([0, 6, 6])}, "offsets do not split"),
        ({"offsets": torch.tensor([0, 9, 6])}, "offsets do not split"),
        ({"offsets": torch.tensor([1, 3, 6])}, "offsets do not split"),
        ({"offsets": torch.tensor([0, 6])}, "offsets do not split"),
        ({"offsets": torch.tensor([0.0, 3.0, 6.0])}, "offsets do not split"),
        ({"offsets": torch.zeros(0).long()}, "offsets do not split"),
        ({"more": torch.zeros(1)}, r"not a file of codes \(holds codes, more, offsets\)"),
        ({"format": "other"}, "not a file of codes"),
        ({"spec": "{"}, "metadata 'spec': not valid JSON"),
        ({"spec": "{}"}, "spec.name: Field required"),
        ({"spec": PICTURES.model_dump_json()}, "'a' has 3 frames, an image has 6"),
        ({"items": "7"}, "items: "),
        ({"items": '[{"name": "a"}]'}, "offsets do not split 6 frames into 1 items"),
        ({"items": '[{"name": "a", "num_samples": 241}, {"name": "b"}]'}, "'a' has 241 samples in 3 frames"),
        ({"items": '[{"name": "a", "num_samples": 160}, {"name": "b"}]'}, "'a' has 160 samples in 3 frames"),
        ({"items": '[{"name": "a", "num_samples": -1}, {"name": "b"}]'}, "num_samples"),
    ],
)
def test_wrong_files(tmp_path, change, message):
    path = tmp_path / "x.safetensors"
    write_codes(path, SOUND, [CodesItem("a", codes(3), 240), CodesItem("b", codes(3), 201)])
    tensors, metadata = read_safetensors(path)
    for key, value in change.items():
        (metadata if isinstance(value, str) else tensors)[key] = value
    write_safetensors(path, tensors, metadata)
    with pytest.raises(ValueError, match=message) as error:
        read_codes(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
