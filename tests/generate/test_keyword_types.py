"""The keyword arguments of generate have the names and types of GenerationConfig.

Write the file anew after a change: python tests/generate/test_keyword_types.py
"""

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tessera.generate.requests import keyword_types
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.guidance_config import Guidance
from tessera.lm.kv_cache.config import CacheConfig

HEAD = '''"""The types of generation settings as keyword arguments, written from `GenerationConfig` by
tests/generate/test_keyword_types.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from ...lm.guidance_config import Guidance
from ...lm.kv_cache.config import CacheChoice
from ...tokenize.text.coverage import TextSeen


class Settings(TypedDict, total=False):
    """Optional settings of a call: the fields of `GenerationConfig`. The model's defaults apply to those not given."""

'''


def written(annotation: Any) -> list[str]:
    """The types a keyword argument may have: lists where the config has tuples, mappings where it has configs."""
    if annotation == Guidance:
        return ["Guidance", "Sequence[float]", "dict"]
    if annotation == CacheConfig:
        return ["CacheChoice"]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return written(inner[0])
    if origin in (Union, types.UnionType):
        return list(dict.fromkeys(text for one in inner for text in written(one)))
    if origin is tuple:
        return [f"Sequence[{written(inner[0])[0]}]"]
    if origin is Literal:
        return [f"Literal[{', '.join(repr(one) for one in inner)}]".replace("'", '"')]
    return ["None" if annotation is type(None) else annotation.__name__]


def source() -> str:
    """The file's text."""
    hints = get_type_hints(GenerationConfig, include_extras=True)
    lines = [f"    {name}: {' | '.join(written(hints[name]))}\n" for name in GenerationConfig.model_fields]
    return HEAD + "".join(lines)


def test_the_types_of_keyword_arguments_are_those_of_the_config():
    assert Path(keyword_types.__file__).read_text() == source(), f"write it anew: python {__file__}"


if __name__ == "__main__":
    Path(keyword_types.__file__).write_text(source())
