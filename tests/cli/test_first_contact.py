"""What somebody sees first: versions, help with an example for every verb, the nearest name, a clear first mistake."""

import re
import subprocess
import sys

import pytest

from tessera.cli.app import commands, run
from tessera.cli.failures import print_failure


def verbs() -> list[list[str]]:
    command = commands()
    found = []
    for name, verb in command.commands.items():
        found += [[name, inner] for inner in verb.commands] if hasattr(verb, "commands") else [[name]]
    return found


def test_version_says_it_all_without_importing_torch(tmp_path):
    code = "import sys, tessera.cli.app as a; c = a.run(['--version']); sys.exit(c or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert re.fullmatch(r"tessera \d+\.\d+\.\d+, torch \d+\.\d+\S*, python 3\.\d+\.\d+\n", done.stdout)


def test_no_arguments_show_the_verbs_and_first_steps(capsys):
    run([])
    printed = capsys.readouterr()
    shown = printed.out + printed.err
    assert shown.startswith("Usage: tessera ") and 'tessera image "a red apple" -o apple.png' in " ".join(shown.split())
    assert all(verb[0] in shown for verb in verbs())


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_help_has_an_example_that_exists(verb, capsys):
    assert run([*verb, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    example = re.search(rf"Example: tessera {' '.join(verb)}\b", shown)
    assert example, shown
    command = commands()
    for name in verb:
        command = command.commands[name]
    known = {flag for parameter in command.params for flag in parameter.opts}
    for line in re.findall(r"Example: (.*)", command.help):
        assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", line)) <= known, line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generat", "digits"], "Did you mean 'generate'?"),
        (["tokenizer", "trian"], "Did you mean 'train'?"),
        (["xylophone"], "No such command 'xylophone'; tessera --help lists them"),
        (["tokenizer", "xylophone"], "tessera tokenizer --help lists them"),
        (["image"], "Missing argument 'prompt'; for instance: tessera image \"a red apple\" --style noto -o apple.png"),
        (["image", "7"], "Missing option '-o' / '--out'; for instance: tessera image \"a red apple\" --style noto -o"),
        (["tts"], 'for instance: tessera tts "Hello world." -o hello.wav'),
        (["train"], "for instance: tessera train "),
        (["generate", "digits", "--lable", "7", "-o", "x"], "--label"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_first_mistake_says_how(words, message, capsys):
    assert run(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("tessera: ") and error.count("\n") == 1


def test_pydantic_and_system_errors_are_spelled_plainly(capsys):
    from tessera.lm.config import LMConfig

    with pytest.raises(ValueError) as caught:
        LMConfig(width=None)  # type: ignore[arg-type]
    assert print_failure(caught.value) == 2
    told = capsys.readouterr().err
    assert told.startswith("tessera: ") and "validation error" not in told and "input_value" not in told
    for error in (FileExistsError(17, "File exists", "a"), NotADirectoryError(20, "Not a directory", "a")):
        assert print_failure(error) == 2
    assert print_failure(ValueError("cannot read ([Errno 2] No such file or directory: 'x')")) == 2
    assert "Errno" not in capsys.readouterr().err
