"""Draw what a policy scored over a run as an SVG, beside a control if there is one.

python examples/draw_curve.py runs/grpo-nano-arithmetic examples/nano/curve.svg
python examples/draw_curve.py runs/smollm2_sums examples/smollm2/curve.svg runs/smollm2_still
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, ABOVE, BELOW = 48, 12, 16, 56
BLUE, ORANGE, GREY = "#2b7bba", "#e07b00", "#888"

Rows = Sequence[dict]
"""Lines of a run's metrics.jsonl."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The plane of one picture: steps 0 to `last` from left to right, scores 0 to `top` from the bottom up."""

    width: int
    height: int
    last: int
    top: float

    @property
    def bottom(self) -> int:
        return self.height - BELOW

    def place(self, step: float, value: float) -> tuple[float, float]:
        x = LEFT + (self.width - LEFT - RIGHT) * min(step, self.last) / self.last
        return round(x, 1), round(self.bottom - (self.bottom - ABOVE) * value / self.top, 1)

    def grid(self) -> str:
        parts = []
        for share in range(5):
            x, y = self.place(0, self.top * share / 4)
            parts.append(f'<path d="M{x} {y}H{self.width - RIGHT}" stroke="#8884" />')
            parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{self.top * share / 4:.2f}</text>')
        return "".join(parts)

    def rollouts(self, rows: Rows, colour: str) -> str:
        """The mean score of each step's rollouts, as a line."""
        places = [self.place(row["step"], row["reward/mean"]) for row in rows if "reward/mean" in row]
        line = " ".join(f"{x},{y}" for x, y in places)
        return f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2" />'

    def held_out(self, rows: Rows, colour: str) -> str:
        """Held-out scores as points, each with one standard error."""
        parts = []
        for row in rows:
            if "held_out/sampled" in row:
                mean, error = row["held_out/sampled"], row.get("held_out/standard_error", 0.0)
                x, y = self.place(row["step"], mean)
                low, high = (self.place(0, mean + side * error)[1] for side in (-1, 1))
                parts.append(f'<path d="M{x} {low}V{high}" stroke="{colour}" stroke-width="2" />')
                parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}" />')
        return "".join(parts)


def svg(width: int, height: int, content: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12" fill="{GREY}">{content}</svg>\n'
    )


def main(run: Path, picture: Path, *controls: Path) -> None:
    rows = _rows(run)
    highest = max(row.get(name, 0.0) for row in rows for name in ("reward/mean", "held_out/sampled"))
    # A scale of its own for scores that stay low, or go above 1.
    top = 1.0 if 0.5 < highest <= 1.0 else 1.1 * highest
    frame = Frame(width=WIDTH, height=HEIGHT, last=max(row["step"] for row in rows), top=top)
    parts = [frame.grid(), frame.rollouts(rows, BLUE), frame.held_out(rows, ORANGE)]
    parts += [frame.held_out(_rows(control), GREY) for control in controls]
    legend = "blue: mean score of the step's rollouts; orange: held out, one standard error"
    legend += "; grey: the control" if controls else ""
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 32}">steps (of {frame.last})</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 10}" text-anchor="end">{legend}</text>')
    picture.write_text(svg(WIDTH, HEIGHT, "".join(parts)))


def _rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
