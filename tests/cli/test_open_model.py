"""Commands say when other weights would be much faster, and only then."""

from tessera.cli import open_model as module
from tessera.cli.app import run


def test_large_float32_weights_are_named(tmp_path, monkeypatch, capsys):
    command = ["generate", "digits", "--label", "7", "-o", str(tmp_path / "seven.png")]

    def notes(*more):
        assert run([*command, *more]) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "--weights" in line]

    assert notes() == []
    monkeypatch.setattr(module, "LARGE", 1 << 16)
    (note,) = notes("--device", "cpu")
    assert "in float32" in note and "--weights bfloat16" in note
    assert notes("--device", "cpu", "--weights", "int8") == []
