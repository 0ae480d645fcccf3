"""What a stranger's files call things reaches no terminal as it is."""

import pytest

from tessera.cli.resolve import report_skipped
from tessera.configs.schema import ConfigError, check_config
from tessera.tokenize.data.media import MediaError, Notes, print_notes
from tessera.tokenize.spec import TokenSpec

HOSTILE = "\x1b]0;owned\x07\x1b[31m\r\n\u202e"


def test_messages_and_notes_are_escaped(capfd):
    notes = Notes()
    notes.say(f"said {HOSTILE}")
    notes.add("counted", f"{HOSTILE}.wav")
    print_notes(notes)
    report_skipped([f"reason {HOSTILE}"], 2)
    told = capfd.readouterr().err
    assert len(told.splitlines()) == 4 and all(line.isprintable() for line in told.splitlines())
    assert str(MediaError(f"{HOSTILE}.wav: gone")).isprintable()


@pytest.mark.parametrize("name", [HOSTILE, "x" * 300])
def test_names_of_tokenizers_are_printable(name):
    data = {"name": name, "cardinalities": [4], "fingerprint": "0"}
    data["geometry"] = {"kind": "audio", "sample_rate": 8000, "samples_per_frame": 80}
    with pytest.raises(ConfigError, match="is not a printable name"):
        check_config(data, TokenSpec)
    assert check_config(data | {"name": "Töne 3"}, TokenSpec).name == "Töne 3"
