"""Draw what a policy scored over a run as an SVG, beside a control if there is one.

python examples/draw_curve.py runs/grpo-nano-arithmetic examples/nano/curve.svg
python examples/draw_curve.py runs/smollm2_sums examples/smollm2/curve.svg runs/smollm2_still
"""

import json
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 280, 48, 56
BLUE, ORANGE, GREY = "#2b7bba", "#e07b00", "#888"


def main(run: Path, picture: Path, *controls: Path) -> None:
    rows = _rows(run)
    last = max(row["step"] for row in rows)
    highest = max(row.get(name, 0.0) for row in rows for name in ("reward/mean", "held_out/sampled"))
    # A scale of its own for scores that stay low, or go above 1.
    top = 1.0 if 0.5 < highest <= 1.0 else 1.1 * highest

    def place(step: float, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - 12) * step / last
        return f"{x:.1f},{HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 16) * value / top:.1f}"

    parts = []
    for share in range(5):
        x, y = place(0, top * share / 4).split(",")
        parts.append(f'<path d="M{x} {y}H{WIDTH - 12}" stroke="#8884" />')
        parts.append(f'<text x="{LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{top * share / 4:.2f}</text>')
    line = " ".join(place(row["step"], row["reward/mean"]) for row in rows if "reward/mean" in row)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{BLUE}" stroke-width="2" />')
    for own, colour in ((rows, ORANGE), *((_rows(control), GREY) for control in controls)):
        for row in own:
            if "held_out/sampled" in row:
                mean, error = row["held_out/sampled"], row.get("held_out/standard_error", 0.0)
                x, y = place(min(row["step"], last), mean).split(",")
                low, high = (place(0, mean + side * error).split(",")[1] for side in (-1, 1))
                parts.append(f'<path d="M{x} {low}V{high}" stroke="{colour}" stroke-width="2" />')
                parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}" />')
    legend = "blue: mean score of the step's rollouts; orange: held out, one standard error"
    legend += "; grey: the control" if controls else ""
    picture.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="{GREY}">{"".join(parts)}<text x="{LEFT}" y="{HEIGHT - 32}">steps (of {last})</text>'
        f'<text x="{WIDTH - 12}" y="{HEIGHT - 10}" text-anchor="end">{legend}</text></svg>\n'
    )


def _rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
