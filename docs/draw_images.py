"""Draw the images of the documentation: ``python docs/draw_images.py``. Plain Python, no packages.

``images/rooms.svg`` is the table of docs/architecture.md drawn as a house; ``images/vae.svg`` is a VAE.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path

DOCS = Path(__file__).parent
FILLS = ("#e8eef7", "#dfe9e2", "#f4ecd8", "#f3e0dc", "#e7e0f0")
INK, LINE, CAPTION = "#1f2933", "#8a94a3", "#7b8794"
"""Dark on light boxes; lines and captions in a grey that is read on white and on black."""


def box(x: float, y: float, width: float, height: float, fill: str, *lines: str, mono: bool = False) -> str:
    """A rounded rectangle with centred lines of text, the first one larger."""
    family = "ui-monospace, Menlo, Consolas, monospace" if mono else "system-ui, sans-serif"
    middle = y + height / 2 - 8.5 * (len(lines) - 1) + 5
    texts = "".join(
        f'<text x="{x + width / 2:g}" y="{middle + 17 * row:g}" font-size="{13 if row or mono else 15}">{line}</text>'
        for row, line in enumerate(map(escape, lines))
    )
    shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" stroke="{LINE}"/>'
    return f'{shape}<g fill="{INK}" text-anchor="middle" font-family="{family}">{texts}</g>'


def caption(x: float, y: float, text: str, anchor: str = "middle") -> str:
    """Small text outside the boxes."""
    font = 'font-family="system-ui, sans-serif" font-size="13"'
    return f'<text x="{x:g}" y="{y:g}" fill="{CAPTION}" text-anchor="{anchor}" {font}>{escape(text)}</text>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line with a head at its end."""
    return f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}" stroke="{LINE}" stroke-width="1.5" marker-end="url(#head)"/>'


def svg(width: int, height: int, title: str, *parts: str) -> str:
    """The whole file."""
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/></marker></defs>'
    )
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
    return "\n".join([opening, f"<title>{escape(title)}</title>", head, *parts, "</svg>"]) + "\n"


def rooms(architecture: str) -> str:
    """The house: a storey per floor, the lowest at the bottom, and what stands apart beside it."""
    table = re.findall(r"^\| (\d|apart) \| `(\w+)` \|", architecture, re.MULTILINE)
    floors = {floor: [room for _, room in pairs] for floor, pairs in groupby(table, key=lambda pair: pair[0])}
    apart = floors.pop("apart")
    storeys = [(floor, names[i : i + 5]) for floor, names in floors.items() for i in range(0, len(names), 5)]
    height = 52 * len(storeys) + 40
    parts = [caption(45, 22, "floor"), caption(390, 22, "a room imports only from lower floors")]
    for index, (floor, names) in enumerate(storeys):
        y = height - 52 * (index + 1)
        width = (640 - 10 * (len(names) - 1)) / len(names)
        parts.append(caption(45, y + 26, floor))
        for column, name in enumerate(names):
            fill = FILLS[int(floor) % len(FILLS)]
            parts.append(box(70 + column * (width + 10), y, width, 42, fill, name, mono=True))
    parts.append(caption(800, 22, "apart: without torch"))
    for index, name in enumerate(apart):
        parts.append(box(730, height - 52 * (index + 1), 140, 42, "#ffffff", name, mono=True))
    return svg(890, height + 8, "The rooms of vaelib, by floor", *parts)


def vae() -> str:
    """Image, encoder, posterior, draw, decoder, likelihood."""
    blue, green, yellow, red, violet = FILLS
    return svg(
        860,
        190,
        "A variational autoencoder",
        box(10, 60, 100, 60, blue, "x", "image"),
        arrow(110, 90, 138, 90),
        box(140, 50, 120, 80, green, "encoder", "q(z|x)"),
        arrow(260, 90, 288, 90),
        box(290, 50, 110, 80, yellow, "mu, logvar", "posterior"),
        arrow(400, 90, 428, 90),
        box(430, 60, 70, 60, yellow, "z", "a draw"),
        arrow(500, 90, 528, 90),
        box(530, 50, 120, 80, green, "decoder", "p(x|z)"),
        arrow(650, 90, 678, 90),
        box(680, 60, 170, 60, red, "recon_params", "likelihood's parameters"),
        box(430, 5, 70, 34, violet, "prior"),
        arrow(465, 39, 465, 58),
        caption(510, 26, "p(z): draw from here for new images", "start"),
        caption(345, 160, "KL: nats that the code costs"),
        caption(735, 160, "-log p(x|z): nats still missing"),
    )


def drawings() -> Iterator[tuple[Path, str]]:
    """Each file and what belongs in it."""
    yield DOCS / "images/rooms.svg", rooms((DOCS / "architecture.md").read_text())
    yield DOCS / "images/vae.svg", vae()


if __name__ == "__main__":
    for path, content in drawings():
        path.write_text(content)
