"""Converts library error messages for the command line: flags replace Python parameter names.

Library messages use the names of the Python API (`voice_frames`, "ask for unconditional"). Only this module converts
them to command-line flags; verbs that read a YAML file are excluded, because its keys have the Python names.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

RENAMED = {"num_frames": "frames", "max_frames": "max_seconds", "min_frames": "max_seconds"}
"""Python parameters that are set by an option of another name."""

PHRASES = (
    (r"or ask for unconditional", "or add --unconditional", "unconditional"),
    (r", or set split to 'off'", "", None),
    (r"load it with tessera\.lm\.checkpoints\.model_directory\.load_lm, or convert it again", "convert it again", None),
    (r"use load_model\(\.\.\.\)\.lm", "no public layout holds such a model", None),
    (r"give it as prompt", "give it as --prompt", "prompt"),
    (r"\bn must be", "-n must be", "n"),
    (r"pass num_frames", "pass --frames", "frames"),
)
"""(Python wording, command-line wording, required parameter of the verb). If the verb lacks the parameter, the phrase
is removed together with the comma before it."""


def with_flags(text: str, options: dict[str, str]) -> str:
    """Replace library parameter names in a message by a verb's flags.

    Args:
        options: the flag of each parameter of the verb: {"voice_frames": "--voice-frames"}.
    """
    if "set_" in options or not options:
        return text
    for written, replacement, needed in PHRASES:
        if needed is None or needed in options:
            text = re.sub(written, replacement, text)
        else:
            text = re.sub(rf",? ?{written}", "", text)
    text = re.sub(
        r"^tessera: generate: (\w+)((?:\.\w+)*): ",
        lambda found: f"tessera: {_flag(found[1], options) or found[1]}: " + _inside(found[2]),
        text,
    )
    return re.sub(
        r"(?<![-\w./])[a-z]+(?:_[a-z]+)+\b(?![./(=])", lambda found: _flag(found[0], options) or found[0], text
    )


def _inside(place: str) -> str:
    """The location inside a value such as a mapping; "" for a codebook index."""
    inner = [part for part in place.split(".") if part and not part.isdigit()]
    return f"{'.'.join(inner)}: " if inner else ""


def _flag(parameter: str, options: dict[str, str]) -> str | None:
    return options.get(parameter) or options.get(RENAMED.get(parameter, ""))


def options_of(arguments: Sequence[str] | None, command: Any) -> dict[str, str]:
    """The longest flag of each option of the called verb, keyed by parameter.

    Args:
        arguments: command-line arguments; None: those of this process.
        command: the click group of all verbs.
    """
    for word in sys.argv[1:] if arguments is None else arguments:
        if word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]
    found = {}
    for parameter in command.params:
        flags = [flag for flag in parameter.opts if flag.startswith("-")]
        if flags:
            found[parameter.name] = max(flags, key=len)
    return found


def usage_text(error: Any) -> str:
    """The message for a command-line usage error, with an example of the verb if an argument is missing."""
    text = error.format_message().replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    if context is None or "\n" in text:
        return text
    if "No such command" in text and "Did you mean" not in text:
        return f"{text.rstrip('.')}; {context.command_path.replace('-', 'tessera', 1)} --help lists them"
    example = re.search(r"Example: (tessera .*?)(?:\n|$)", context.command.help or "")
    return f"{text.rstrip('.')}; for instance: {example[1]}" if text.startswith("Missing") and example else text
