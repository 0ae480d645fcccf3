"""HTML page of the reports: style sheet with a light and a dark theme, logo, page skeleton, and small elements."""

from __future__ import annotations

import html
from collections.abc import Sequence

from .charts import NUM_SERIES_COLOURS, data_url

_LIGHT = ("#2a78d6", "#c2410c", "#0f8a5f", "#8b5cf6", "#b7791f", "#d6336c", "#0e7490", "#64748b")
_DARK = ("#6aa9f4", "#f08c4a", "#3fc08f", "#b197fc", "#e0b04c", "#f06595", "#3bc9db", "#94a3b8")


def _variables(colours: tuple[str, ...]) -> str:
    return " ".join(f"--series-{number}: {colour};" for number, colour in enumerate(colours[:NUM_SERIES_COLOURS]))


STYLE = (
    f"""
:root {{ color-scheme: light dark;
  --page: #fbfaf7; --card: #ffffff; --ink: #1d2126; --quiet: #646b75; --line: #e4e1d9; --code: #f3f1ea;
  {_variables(_LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{
  --page: #14161a; --card: #1c1f25; --ink: #e8e6e1; --quiet: #9aa2ad; --line: #31363f; --code: #23272e;
  {_variables(_DARK)} }} }}
"""
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, "Segoe UI", Roboto, sans-serif; }
main, header { max-width: 1000px; margin: 0 auto; padding: 0 24px; }
header { display: flex; gap: 18px; align-items: center; padding-top: 44px; padding-bottom: 8px; }
header h1 { font-size: 30px; line-height: 1.2; margin: 0; letter-spacing: -0.01em; }
header p { margin: 4px 0 0; color: var(--quiet); }
.logo { width: 52px; height: 52px; flex: none; }
section, .tile { background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
section { padding: 26px 30px; margin: 22px 0; }
h2 { margin: 0 0 6px; font-size: 21px; letter-spacing: -0.01em; }
h3 { margin: 26px 0 4px; font-size: 16px; }
p { max-width: 76ch; }
.lead { margin: 0 0 16px; max-width: 76ch; }
.quiet, figcaption { color: var(--quiet); font-size: 14px; }
.note { border-left: 3px solid var(--series-1); padding: 2px 12px; margin: 14px 2px; color: var(--quiet); }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 14px; margin: 22px 0; }
.tile { padding: 16px 18px; }
.tile b { display: block; font-size: 26px; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { color: var(--quiet); font-size: 13.5px; line-height: 1.35; display: block; margin-top: 2px; }
.command { background: var(--code); border-radius: 8px; padding: 10px 14px; overflow-x: auto; margin: 0 0 18px; }
code { font: 13.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
figure { margin: 0; }
figcaption { margin-top: 6px; line-height: 1.4; }

svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, "Segoe UI", Roboto, sans-serif; fill: var(--quiet); }
svg text.name { fill: var(--ink); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); stroke-width: 1; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.raw { fill: none; stroke-width: 1; opacity: 0.22; }
.usages { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 20px; }
.usage { border-bottom: 1px solid var(--line); }
.fair { stroke: var(--quiet); stroke-dasharray: 3 3; }

.pixels { image-rendering: pixelated; border-radius: 4px; display: inline-block; vertical-align: middle;
  background: #000; }
.small { width: 40px; height: 40px; margin: 2px; }
.middle { width: 88px; height: 88px; object-fit: contain; margin: 2px; }
.large { width: 120px; height: 120px; border-radius: 8px; }
.journey { display: flex; flex-wrap: wrap; align-items: center; gap: 18px; }
.journey figcaption { text-align: center; }
.grids { display: grid; grid-template-columns: repeat(auto-fit, 118px); gap: 14px; flex: 1; min-width: 118px; }
.mosaic { width: 118px; }
.mosaic text { fill: #fff; font-size: 12px; font-weight: 600; }
.arrow { width: 58px; text-align: center; color: var(--quiet); font-size: 13px; }
.arrow path { fill: none; stroke: var(--quiet); stroke-width: 1.5; }
.pairs { display: flex; flex-wrap: wrap; gap: 10px 14px; }
.pair { white-space: nowrap; }

.wide { overflow-x: auto; }
table { border-collapse: collapse; }
.gallery th { font-weight: 600; text-align: left; padding: 3px 16px 3px 0; }
.gallery thead th { color: var(--quiet); font-weight: 400; font-size: 13.5px; }
.gallery td { padding: 1px 22px 1px 0; white-space: nowrap; }
.gallery .real { border-left: 1px solid var(--line); padding-left: 16px; }

.utterances { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 20px; }
.twos { grid-template-columns: 1fr 1fr; }
.utterance img { width: 100%; height: 120px; border-radius: 8px; display: block; }
.utterance figcaption { margin: 0 0 6px; }
.utterance figcaption span { display: block; }
.utterance figcaption b { color: var(--ink); font-weight: 600; display: block; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
.utterance.timed { grid-column: 1 / -1; }
.words { position: relative; height: 22px; margin-top: 3px; }
.words span { position: absolute; font-size: 12px; line-height: 20px; overflow: hidden; white-space: nowrap;
  text-align: center; color: var(--quiet); border-left: 1px solid var(--line); border-right: 1px solid var(--line); }
.captions { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 18px; }
.captions figcaption { max-width: 140px; }
.utterance audio { width: 100%; height: 36px; margin-top: 6px; }

.facts td, .facts th { padding: 3px 18px 3px 0; text-align: left; font-variant-numeric: tabular-nums; }
.facts thead th { color: var(--quiet); font-weight: 400; font-size: 13.5px; }
.facts tbody th { font-weight: 600; }
.bars { width: 100%; }
.bars th { text-align: left; font-weight: 400; padding: 4px 16px 4px 0; white-space: nowrap; }
.bars .bar { width: 100%; }
.bars .bar div { background: var(--series-0); height: 12px; border-radius: 3px; min-width: 2px; }
.bars .number { text-align: right; white-space: nowrap; padding-left: 12px; font-variant-numeric: tabular-nums; }
footer { color: var(--quiet); font-size: 14px; margin: 26px 0 60px; }
@media (max-width: 640px) { section { padding: 20px 16px; } .small { width: 32px; height: 32px; } }
"""
)

LOGO = (
    '<svg class="logo" viewBox="0 0 44 44" aria-hidden="true">'
    + "".join(
        f'<rect x="{11 * x}" y="{11 * y}" width="10" height="10" rx="2" '
        f'style="fill: var(--series-{(2 * x + 3 * y) % 5})"/>'
        for y in range(4)
        for x in range(4)
        if y == 0 or x in (1, 2)  # a T of tiles
    )
    + "</svg>"
)

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>{logo}<div>
<h1>{title}</h1>
<p>{subtitle}</p>
</div></header>
<main>
{body}
<footer>Written by <code>{command}</code>. Everything on this page is inside this file.</footer>
</main>
</body>
</html>
"""


def page(title: str, subtitle: str, sections: Sequence[str], command: str) -> str:
    """The whole page as HTML text; title, subtitle and command are plain text, sections are HTML."""
    texts = {"title": title, "subtitle": subtitle, "command": command}
    escaped = {name: html.escape(text) for name, text in texts.items()}
    return PAGE.format(style=STYLE, logo=LOGO, body="\n".join(sections), **escaped)


def section(anchor: str, title: str, words: str, body: str, command: str = "") -> str:
    """One section of a page: heading, text, optional command, and body; all but the command are HTML."""
    shown = f'<pre class="command"><code>{html.escape(command)}</code></pre>' if command else ""
    return f'<section id="{anchor}"><h2>{title}</h2><p class="lead">{words}</p>{shown}{body}</section>'


def figure(drawing: str, caption: str) -> str:
    """A chart with its caption below."""
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def image_tag(png: bytes, label: str, size: str = "small") -> str:
    """A PNG scaled with sharp pixels; size: small, middle or large."""
    label = html.escape(label)
    return f'<img class="pixels {size}" src="{data_url(png, "image/png")}" alt="{label}" title="{label}">'
