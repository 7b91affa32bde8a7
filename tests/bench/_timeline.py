"""A picture of who works when: one panel a run, one row a worker, as SVG that every browser shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, ROW, GAP, TOP = 960, 90, 34, 8, 26
COLOURS = {
    "decode": "#4c78a8", "generate": "#4c78a8", "reference": "#72b7b2", "credit": "#54a24b", "update": "#f58518",
    "new weights": "#222222", "sync": "#222222", "rest": "#bab0ac",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A time in which somebody worked."""

    row: str
    what: str
    start_s: float
    end_s: float
    share: float = 1.0
    """Of the row's height: how many of an engine's responses were running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One run, from the moment that is its 0."""

    title: str
    bars: tuple[Bar, ...]
    marks_s: tuple[float, ...]
    """Where steps end."""


def svg(panels: Sequence[Panel], *, seconds: float) -> str:
    """All panels on one scale, of so many seconds."""
    parts, top = [], 0
    scale = (WIDTH - LEFT) / seconds
    for panel in panels:
        rows = list(dict.fromkeys(bar.row for bar in panel.bars))
        bottom = top + TOP + len(rows) * (ROW + GAP)
        parts.append(f'<text x="4" y="{top + 17}" font-weight="bold">{escape(panel.title)}</text>')
        for number, row in enumerate(rows):
            y = top + TOP + number * (ROW + GAP)
            parts.append(f'<text x="4" y="{y + ROW / 2 + 4:.0f}">{escape(row)}</text>')
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT}" height="{ROW}" fill="#eeeeee"/>')
            for bar in (bar for bar in panel.bars if bar.row == row):
                start, end = max(bar.start_s, 0.0), min(bar.end_s, seconds)
                if end > start:
                    height = ROW * bar.share
                    parts.append(
                        f'<rect x="{LEFT + start * scale:.1f}" y="{y + ROW - height:.1f}" '
                        f'width="{max((end - start) * scale, 1.0):.1f}" height="{height:.1f}" '
                        f'fill="{COLOURS[bar.what]}"><title>{escape(bar.what)}</title></rect>'
                    )
        for number, mark in enumerate(panel.marks_s, start=1):
            if 0 < mark < seconds:
                x = LEFT + mark * scale
                parts.append(
                    f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top + TOP - 4}" y2="{bottom - GAP + 4}" stroke="#d62728" '
                    f'stroke-dasharray="4 3"/><text x="{x - 4:.1f}" y="{top + 17}" text-anchor="end" '
                    f'fill="#d62728">step {number}</text>'
                )
        top = bottom + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )
