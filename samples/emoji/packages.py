"""Emoji drawn in five styles, and their names, read from npm packages as `npm pack` writes them (.tgz).

    style      package                    graphics                              licence
    noto       @iconify-json/noto         Noto Emoji, Google                    Apache-2.0
    blob       @iconify-json/noto-v1      Noto Emoji 1, Google                  Apache-2.0
    twemoji    @iconify-json/twemoji      Twemoji, Twitter and others           CC-BY-4.0
    fluent     @iconify-json/fluent-emoji-flat   Fluent Emoji flat, Microsoft   MIT
    fluent3d   @lobehub/fluent-emoji-3d   Fluent Emoji 3D, Microsoft            MIT
    (names)    emojibase-data             names and keywords of Unicode CLDR    MIT

The licence is read from the package itself, and another one is refused.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

LICENCES = {
    "@iconify-json/noto": "Apache-2.0",
    "@iconify-json/noto-v1": "Apache-2.0",
    "@iconify-json/twemoji": "CC-BY-4.0",
    "@iconify-json/fluent-emoji-flat": "MIT",
    "@lobehub/fluent-emoji-3d": "MIT",
    "emojibase-data": "MIT",
}
"""Expected licence of each package's graphics (or names)."""
NAMES = "emojibase-data"
STYLES = {
    "noto": "@iconify-json/noto",
    "blob": "@iconify-json/noto-v1",
    "twemoji": "@iconify-json/twemoji",
    "fluent": "@iconify-json/fluent-emoji-flat",
    "fluent3d": "@lobehub/fluent-emoji-3d",
}
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{side}" height="{side}" '
    'viewBox="{left} {top} {width} {height}">{body}</svg>'
)


class Package:
    """A packed npm package.

    Args:
        folder: where `npm pack` was run. name: of the package.
    Raises:
        FileNotFoundError: it is not there. ValueError: it is there in two versions, or under another licence.
    """

    def __init__(self, folder: Path, name: str):
        stem = name.lstrip("@").replace("/", "-")
        found = [path for path in sorted(folder.glob(f"{stem}-*.tgz")) if path.name[len(stem) + 1].isdigit()]
        if not found:
            raise FileNotFoundError(f"{folder}: no package {name}; in that folder: npm pack {name}")
        if len(found) > 1:
            raise ValueError(f"{folder}: {name} is there more than once ({', '.join(path.name for path in found)})")
        self.name = name
        with tarfile.open(found[0]) as archive:
            members = [member for member in archive if member.isfile()]
            self.files = {member.name.partition("/")[2]: archive.extractfile(member).read() for member in members}  # pyright: ignore[reportOptionalMemberAccess]
        self.version = str(self.json("package.json")["version"])
        self.licence = self._licence()
        if self.licence != LICENCES[name]:
            raise ValueError(f"{found[0]}: its licence is {self.licence}, expected {LICENCES[name]}")

    def json(self, file: str):
        """Content of a JSON file."""
        return json.loads(self.files[file])

    def _licence(self) -> str:
        """Icon sets state that of the graphics in info.json; their package.json may state that of the code."""
        if "info.json" in self.files:
            return str(self.json("info.json")["license"]["spdx"])
        return str(self.json("package.json")["license"])


class IconSet:
    """Drawings as SVG, from a package of Iconify: icons by name, and names by code points."""

    def __init__(self, package: Package):
        content = package.json("icons.json")
        self.sides = content.get("width", 16), content.get("height", 16)
        self.icons, self.aliases = content["icons"], content.get("aliases", {})
        self.chars: dict[str, str] = package.json("chars.json")

    def svg(self, names: Iterable[str], side: int) -> str | None:
        """The first of these icons that exists, as an SVG file of `side` pixels."""
        for name in names:
            alias = self.aliases.get(name, {})
            icon = self.icons.get(alias["parent"] if set(alias) == {"parent"} else name)
            if icon:
                width, height = icon.get("width", self.sides[0]), icon.get("height", self.sides[1])
                left, top = icon.get("left", 0), icon.get("top", 0)
                return SVG.format(side=side, left=left, top=top, width=width, height=height, body=icon["body"])
        return None


def plain_code(code: str) -> str:
    """Code points in lower case without variation selectors, which packages use differently: "2764-FE0F" -> "2764"."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def write_drawings(folder: Path, packages: dict[str, Package], codes: Iterable[str], side: int) -> None:
    """Write STYLE/CODE.png, RGBA of `side` pixels, for every code that a style has; files that exist stay.

    Args:
        packages: by style. codes: plain code points.
    """
    from resvg_py import svg_to_bytes  # pyright: ignore[reportMissingImports]

    sets = {style: IconSet(package) for style, package in packages.items() if "icons.json" in package.files}
    names: dict[str, list[str]] = {}
    for icons in sets.values():  # the names of all sets, because that of blob lists no code points
        for code, name in icons.chars.items():
            names.setdefault(plain_code(code), []).append(name)
    for style, package in packages.items():
        (folder / style).mkdir(parents=True, exist_ok=True)
        images = {} if style in sets else images_by_code(package)
        for code in codes:
            path = folder / style / f"{code}.png"
            if path.exists():
                continue
            if style in sets:
                svg = sets[style].svg(names.get(code, ()), side)
                if svg is not None:
                    path.write_bytes(bytes(svg_to_bytes(svg_string=svg)))
            elif code in images:
                _write_scaled(path, images[code], side)


def images_by_code(package: Package) -> dict[str, bytes]:
    """Files assets/CODE.webp of a package of images."""
    found = {Path(file): content for file, content in package.files.items() if file.endswith(".webp")}
    return {plain_code(path.stem): content for path, content in found.items()}


def _write_scaled(path: Path, content: bytes, side: int) -> None:
    from ...tokenize.data.media import read_image, write_image

    original = path.with_suffix(".webp")
    original.write_bytes(content)
    write_image(path, read_image(original, side, side, 4, fit="stretch"))
    original.unlink()
