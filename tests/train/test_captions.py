"""Captions of training items: one of several each step, of keywords some in any order, always the same for a seed."""

from collections import Counter

import pytest
from test_lm_trainer import make_config

from tessera.configs.schema import ConfigError, check_config
from tessera.tokenize.data.shard_reader import Shards
from tessera.tokenize.text.byte_text import ByteText, ByteTextConfig
from tessera.train.common.captions import WHOLE, AlternativesConfig, CaptionReader
from tessera.train.lm.config import TrainConfig
from tessera.train.lm.dataset import CodesDataset

TEXT = "red apple | a red apple | red apple, fruit, healthy"


def test_a_step_reads_one_caption_and_some_parts_of_a_list():
    reader = CaptionReader(AlternativesConfig(part_share=0.5), 3)
    found = Counter(reader(TEXT, draw, 4) for draw in range(1, 3001))
    assert 900 < found["a red apple"] < 1100 and found["red apple"] > 900
    parts = [text.split(", ") for text in found if text not in ("red apple", "a red apple")]
    assert all(set(some) <= {"red apple", "fruit", "healthy"} and len(set(some)) == len(some) for some in parts)
    assert {len(some) for some in parts} == {1, 2, 3}
    assert {"fruit, red apple", "red apple, fruit", "healthy", "healthy, fruit, red apple"} <= set(found)
    assert set(CaptionReader(AlternativesConfig(part_share=1.0), 3)("a, b", draw, 0) for draw in range(1, 30)) == {
        "a, b",
        "b, a",
    }


def test_evaluation_reads_the_first_caption_and_whole_texts_stay():
    reader = CaptionReader(AlternativesConfig(), 3)
    assert reader(TEXT, 0, 4) == "red apple"
    assert reader("a cat, a dog | animals", 0, 4) == "a cat, a dog"
    assert reader(" | ", 5, 4) == " | ", "a text without a caption is not emptied"
    assert [WHOLE(TEXT, draw, 4) for draw in range(3)] == [TEXT] * 3


def test_what_the_model_does_not_read_is_no_caption_and_no_part():
    text = ByteText(ByteTextConfig(normalise="words"))
    reader = CaptionReader(AlternativesConfig(part_share=0.3), 3)
    found = {reader("- | minus, -, , heavy | ?!", draw, 0, text.num_characters) for draw in range(300)}
    assert found == {"minus, -, , heavy", "minus", "heavy", "minus, heavy", "heavy, minus"}
    assert reader("-", 7, 0, text.num_characters) == "-", "refused when the run starts"


def test_a_pure_function_of_seed_step_and_item():
    def read(seed, order=1):
        reader = CaptionReader(AlternativesConfig(), seed)
        return [reader(TEXT, draw, item) for draw in range(1, 20) for item in range(7)][::order]

    assert read(3) == read(3, -1)[::-1] and read(3) != read(4)
    reader = CaptionReader(AlternativesConfig(), 3)
    assert len({reader(TEXT, 5, item) for item in range(50)}) > 4, "items of a step differ"


@pytest.mark.parametrize("told", [TEXT, "- | minus, -"])
def test_a_batch_holds_them(tiny_data, told):
    shards, text = Shards(tiny_data / "train"), ByteText(ByteTextConfig(normalise="words"))
    reader = CaptionReader(AlternativesConfig(), 3)
    shards.index = shards.index.model_copy(update={"texts": [told] * len(shards.lengths)})
    items = CodesDataset(shards, None, text, captions=reader)
    for draw in range(12):
        batch = items.batch([0, 2, 5], draw=draw).conditions
        read = [text.decode(row[:length].tolist()) for row, length in zip(batch.text, batch.text_lengths, strict=True)]
        assert read == [text.prepare(reader(told, draw, row, text.num_characters)) for row in (0, 2, 5)]


def test_they_need_a_text(tmp_path):
    config = make_config(tmp_path)
    data = config.model_dump(mode="json")
    data["data"]["captions"] = {"kind": "alternatives"}
    data["lm"]["conditions"] = []
    with pytest.raises(ConfigError, match="data.captions alternatives is for an lm with the condition text"):
        check_config(data, TrainConfig, "here")
