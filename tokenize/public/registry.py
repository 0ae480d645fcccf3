"""Public codecs by name: how a folder is recognized, read and written.

To add one, write a file with the three functions and add a line here. Systems are asked in this order; the first that
recognizes a folder reads it. What a user may choose are keyword arguments of `read`, named in `options`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...configs.printable import printable
from ...configs.schema import nearest_name
from ..base import Tokenizer
from ..hub.reading import is_transformers_codec, read_transformers_codec, write_transformers_codec
from ..hub.tokenizer import TransformersTokenizer
from .checkpoint import open_checkpoint
from .dac import is_dac, read_dac, write_dac
from .dac_native import is_dac_native, read_dac_native, write_dac_native
from .encodec import is_encodec, read_encodec, write_encodec
from .encodec_native import (
    is_audiocraft,
    is_encodec_package,
    read_audiocraft,
    read_encodec_package,
    write_audiocraft,
    write_encodec_package,
)
from .folder import PublicFolder
from .images.ibq import is_ibq, read_ibq, write_ibq
from .images.llamagen_vq import is_llamagen_vq, read_llamagen_vq, write_llamagen_vq
from .images.open_magvit2 import is_open_magvit2, read_open_magvit2, write_open_magvit2
from .images.taming import is_taming, read_taming, write_taming
from .images.titok import is_titok, read_titok, write_titok
from .images.var_vq import is_var_vq, read_var_vq, write_var_vq
from .mimi import is_mimi, read_mimi, write_mimi
from .moshi import is_moshi, read_moshi, write_moshi
from .qwen3_tts_tokenizer import is_qwen3_tts_tokenizer, read_qwen3_tts_tokenizer, write_qwen3_tts_tokenizer
from .snac import is_snac, read_snac, write_snac
from .tensor_map import CannotWrite


@dataclass(frozen=True)
class PublicCodec:
    """The layout of one public codec."""

    recognize: Callable[[PublicFolder], bool]
    """Whether a folder is one, by config.json or the names of its tensors."""
    read: Callable[..., Tokenizer]
    """read(folder, **options); an option that is not given has the default of `read`."""
    write: Callable[[Path, Tokenizer], None]
    """write(folder, tokenizer); CannotWrite if the layout cannot represent the tokenizer."""
    options: tuple[str, ...] = ("codebooks",)
    """Options of `read`. codebooks: number of codebooks, coarse first. image_size: side of the images in pixels."""


PUBLIC_CODECS = {
    "encodec": PublicCodec(is_encodec, read_encodec, write_encodec),
    "dac": PublicCodec(is_dac, read_dac, write_dac),
    "dac-native": PublicCodec(is_dac_native, read_dac_native, write_dac_native),
    "snac": PublicCodec(is_snac, read_snac, write_snac),
    "llamagen-vq": PublicCodec(is_llamagen_vq, read_llamagen_vq, write_llamagen_vq, ("image_size",)),
    "ibq": PublicCodec(is_ibq, read_ibq, write_ibq, ("image_size",)),
    "taming": PublicCodec(is_taming, read_taming, write_taming, ("image_size",)),
    "open-magvit2": PublicCodec(is_open_magvit2, read_open_magvit2, write_open_magvit2, ("image_size",)),
    "var-vq": PublicCodec(is_var_vq, read_var_vq, write_var_vq, ("image_size",)),
    "titok": PublicCodec(is_titok, read_titok, write_titok, ()),
    "mimi": PublicCodec(is_mimi, read_mimi, write_mimi),
    "moshi": PublicCodec(is_moshi, read_moshi, write_moshi),
    "qwen3-tts-tokenizer": PublicCodec(is_qwen3_tts_tokenizer, read_qwen3_tts_tokenizer, write_qwen3_tts_tokenizer),
    "audiocraft": PublicCodec(is_audiocraft, read_audiocraft, write_audiocraft),
    "encodec-package": PublicCodec(is_encodec_package, read_encodec_package, write_encodec_package),
    "transformers": PublicCodec(is_transformers_codec, read_transformers_codec, write_transformers_codec),
}
"""The last one is for what is left: codecs that transformers computes."""


def recognize_codec(path: str | Path) -> str | None:
    """Name of the public codec in a folder or file, None if it is none that is known."""
    folder = PublicFolder(path)
    for name, codec in PUBLIC_CODECS.items():
        try:
            if codec.recognize(folder):
                return name
        except (ValueError, OSError):
            continue
    return None


def read_public_codec(path: str | Path, codebooks: int | None = None, image_size: int | None = None) -> Tokenizer:
    """Read a public codec as a frozen tokenizer.

    Args:
        path: a folder, or one file of weights.
        codebooks: of audio, number of codebooks, coarse first; None: all that the file has.
        image_size: of images, their side in pixels; None: the one in the files, or else of the published models.
    Raises:
        ValueError: it is no codec that is known, one that is not supported, or one without such an option; the message
            says what was found.
    """
    name = recognize_codec(path)
    if name is None:
        open_checkpoint(Path(path))  # its errors say more: a pickle that is not read, a damaged file
        raise ValueError(f"{path}: no public codec that is known here; known are {', '.join(PUBLIC_CODECS)}")
    given = {"codebooks": codebooks, "image_size": image_size}
    options = {option: value for option, value in given.items() if value is not None}
    for option, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{option} must be a whole number, found {printable(repr(value), 80)}")
        if option not in PUBLIC_CODECS[name].options:
            raise ValueError(f"{path}: {option} {value} was asked for, but {name} has no such choice; leave it out")
    return PUBLIC_CODECS[name].read(PublicFolder(path), **options)


def write_public_codec(name: str, folder: str | Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer in the layout of a public codec; CannotWrite if that cannot represent it."""
    if name not in PUBLIC_CODECS:
        raise ValueError(f"no public codec '{name}'; {nearest_name(name, PUBLIC_CODECS)}")
    if isinstance(tokenizer, TransformersTokenizer):
        raise CannotWrite(
            f"{name}'s layout does not support tokenizer '{tokenizer.config.name}', which transformers computes; keep "
            "the public folder that it was read from"
        )
    PUBLIC_CODECS[name].write(Path(folder), tokenizer)
