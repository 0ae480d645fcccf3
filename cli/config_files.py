"""Opens configs given by path or by the name of a shipped config, and checks that a verb gets the kind it needs."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..configs.printable import say

if TYPE_CHECKING:
    from ..configs.schema import Config

    C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class OpenConfig:
    """A config of the right kind whose contents are not checked yet."""

    path: Path
    name: str | None
    """Name of a shipped config, otherwise None."""
    data: Any
    """Parsed contents of the file."""
    sets: Sequence[str]

    def read_as(self, model: type[C], fill: Callable[[Any, str], Any] | None = None) -> C:
        """The config as an object, with the overrides; raises ConfigError like `read_config`.

        Args:
            fill: fill(data, where) completes the data before it is checked; `where` begins its messages.
        """
        from ..configs.schema import build_config

        where = str(self.path) if self.name is None else self.name
        resolve = _with_shipped if fill is None else lambda data: fill(_with_shipped(data), where)
        read = build_config(copy.deepcopy(self.data), model, self.sets, where, resolve)
        if self.name is not None:
            say(f"config {self.name}; a copy to change: tessera configs {self.name} --copy DIR")
        return read


def open_config(config: str, kind: str, sets: Sequence[str]) -> OpenConfig:
    """Open the config given to a verb.

    Args:
        config: path of a YAML file, or the name of a shipped one ("own-speech/lm"; "own-speech" if that folder has
            one config of this kind). A file at that path takes precedence.
        kind: the required kind, one of `CONFIG_KINDS`.
        sets: overrides, as in `read_config`.
    Raises:
        ConfigError: invalid YAML, or a config of another kind; names the verb that takes it.
        FileNotFoundError: no such file or config; names the nearest.

    Imports no heavy modules. Paths in the file that begin with samples/ or bundled/ fall back to the package if they do
    not exist.
    """
    from ..configs.recognize import CONFIG_KINDS, config_kind
    from ..configs.schema import ConfigError, override, read_yaml
    from ..tokenize.bundled import CONFIGS

    path = find_config(config, kind)
    data = read_yaml(path)
    found = config_kind(override(copy.deepcopy(data), sets))
    if found is not None and found != kind:
        what, command = CONFIG_KINDS[found]
        needed, own = CONFIG_KINDS[kind]
        raise ConfigError(f"{config}: this is {what}, {own} needs {needed}; use it with: {command} {config}")
    name = None if path == Path(config) else path.relative_to(CONFIGS).with_suffix("").as_posix()
    return OpenConfig(path, name, data, sets)


def find_config(config: str, kind: str | None = None) -> Path:
    """The file of a config given by path or name; arguments and errors as in `open_config`; kind None: any."""
    from ..configs.recognize import CONFIG_KINDS, describe_wrong

    path = Path(config)
    if path.is_file():
        return path
    named = shipped_configs(config)
    fitting = [name for name in named if kind is None or kind_of_name(name) == kind]
    if len(fitting) == 1 or len(named) == 1:
        (name,) = fitting if len(fitting) == 1 else named
        return shipped_file(name)
    wanted = "a config" if kind is None else CONFIG_KINDS[kind][0]
    if named and fitting:
        raise FileNotFoundError(f"{config}: several configs come with Tessera under that name: {_some(fitting)}")
    if named:
        others = _some([f"{name} ({CONFIG_KINDS[kind_of_name(name)][1]})" for name in named])
        raise FileNotFoundError(f"{config}: {wanted} is needed here, that name belongs to others: {others}")
    wrong = describe_wrong(path, wanted) if path.exists() else None
    if wrong is not None or path.exists():
        raise FileNotFoundError(wrong or f"{config}: a folder, {wanted} is needed here (a YAML file)")
    raise FileNotFoundError(
        f"{config}: no such file, and no config of that name comes with Tessera; {_nearest(config, kind)}"
    )


def shipped_configs(name: str) -> list[str]:
    """Names of the shipped configs that match a name: one file, the files of one folder, or files with this last
    part."""
    known = all_configs()
    word = name.removeprefix("./").removeprefix("configs/").rstrip("/")
    word = word.removesuffix(".yaml").removesuffix(".yml")
    if word in known:
        return [word]
    return [one for one in known if one.startswith(f"{word}/")] or [one for one in known if one.endswith(f"/{word}")]


def all_configs() -> list[str]:
    """Names of all shipped configs: "digits/lm", ..."""
    from ..tokenize.bundled import CONFIGS

    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))


def shipped_file(name: str) -> Path:
    """The file of a shipped config."""
    from ..tokenize.bundled import CONFIGS

    return CONFIGS / f"{name}.yaml"


def kind_of_name(name: str) -> str:
    """The kind of a shipped config, detected from its contents."""
    from ..configs.recognize import config_kind
    from ..configs.schema import read_yaml

    kind = config_kind(read_yaml(shipped_file(name)))
    assert kind is not None, name
    return kind


def _some(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _nearest(config: str, kind: str | None) -> str:
    """Suggestions of shipped configs with similar names, preferably of the required kind."""
    word = config.removeprefix("configs/").removesuffix(".yaml")
    known = {name: name for name in all_configs()}
    known |= {name.split("/")[1]: name for name in all_configs()}
    known |= {name.split("/")[0]: name.split("/")[0] for name in all_configs()}
    close = [known[one] for one in difflib.get_close_matches(word, known, n=3, cutoff=0.6)]
    named = list(dict.fromkeys(close))
    if named:
        return f"did you mean {' or '.join(repr(one) for one in named)}?"
    return "tessera configs lists them"


def _with_shipped(data: Any) -> Any:
    """Plain data in which missing paths that begin with samples/ or bundled/ are replaced by paths in the package."""
    from ..tokenize.bundled import shipped_path

    if isinstance(data, dict):
        return {key: _with_shipped(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_with_shipped(value) for value in data]
    return str(shipped_path(data)) if isinstance(data, str) and data.startswith(("samples/", "bundled/")) else data
