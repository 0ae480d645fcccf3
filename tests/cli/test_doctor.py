"""The doctor finds what is there, says what is not, and fails only for what Tessera cannot do without."""

import importlib.metadata
import json

import pytest

from tessera.cli.commands import doctor
from tessera.cli.commands.doctor import Finding, examine, format_table


@pytest.fixture(autouse=True)
def without_deepspeed_import(monkeypatch):
    # It takes seconds, and test_deepspeed_that_does_not_import looks at it.
    monkeypatch.setattr(doctor, "_try_deepspeed", lambda finding: finding)


def test_json_is_one_object(capsys):
    assert doctor.doctor(as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    found = {(item["section"], item["name"]): item for item in report["findings"]}
    assert report["ok"] is True
    assert found["packages", "torch"]["value"] == importlib.metadata.version("torch")
    assert found["attention backends", "sdpa"]["state"] == "ok"
    for rows in ("packed rows", "other rows"):
        chosen = found["attention backends", f"auto, {rows}"]
        assert chosen["value"].startswith("sdpa on ") and chosen["note"]
    assert {"voice", "emoji", "digits", "speech"} == {name for section, name in found if section == "bundled models"}


def test_missing_core_package_fails(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CORE_PACKAGES", ("torch", "no-such-package"))
    assert doctor.doctor() == 1
    shown = capsys.readouterr().out
    assert "Not working, and required: no-such-package" in shown and "pip install no-such-package" in shown


def test_missing_optional_package_does_not_fail(monkeypatch):
    monkeypatch.setattr(doctor, "OPTIONAL_PACKAGES", {"no-such-package": "extra 'x': for nothing"})
    finding = next(finding for finding in examine() if finding.name == "no-such-package")
    assert (finding.state, finding.required, finding.note) == ("missing", False, "extra 'x': for nothing")


def test_table_is_aligned():
    table = format_table([Finding("one", "a", "ok", "1"), Finding("two", "long-name", "broken", "2", "why")])
    assert table.splitlines() == ["one", "  ok  a          1", "", "two", "  !!  long-name  2  why"]


def test_deepspeed_that_does_not_import(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(doctor.sys, "executable", "/bin/false")
    found = doctor._try_deepspeed(Finding("optional packages", "deepspeed", "ok", "1.0"))
    assert found.state == "broken" and "does not import: exit code 1" in found.note
