"""Draw what a policy scored over a run, beside a control, and keep both runs' figures.

python examples/smollm2/draw_curve.py runs/smollm2_sums runs/smollm2_still examples/smollm2
"""

import json
import sys
from pathlib import Path

LEFT_OUT = ("export", "folder", "answers")
"""Of a summary: places on one machine, and texts."""
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 280, 48, 56


def main(run: Path, control: Path, folder: Path) -> None:
    rows, still = _rows(run), _rows(control)
    _draw(rows, still, folder / "curve.svg")
    for source, name in ((run, "results"), (control, "control")):
        summary = json.loads((source / "summary.json").read_text())
        kept = {key: value for key, value in summary.items() if key not in LEFT_OUT}
        (folder / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def _rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _draw(rows: list[dict], still: list[dict], picture: Path) -> None:
    last = max(row["step"] for row in rows)
    top = max(row.get("reward/mean", row.get("held_out/sampled", 0.0)) for row in rows) * 1.1

    def place(step: float, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - 12) * step / last
        return f"{x:.1f},{HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 16) * value / top:.1f}"

    line = " ".join(place(row["step"], row["reward/mean"]) for row in rows if "reward/mean" in row)
    parts = []
    for share in range(5):
        x, y = place(0, top * share / 4).split(",")
        parts.append(f'<path d="M{x} {y}H{WIDTH - 12}" stroke="#8884" />')
        parts.append(f'<text x="{LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{top * share / 4:.2f}</text>')
    for own, colour in ((rows, "#e07b00"), (still, "#888")):
        for row in own:
            if "held_out/sampled" in row:
                mean, error = row["held_out/sampled"], row.get("held_out/standard_error", 0.0)
                x, y = place(min(row["step"], last), mean).split(",")
                low, high = (place(0, mean + side * error).split(",")[1] for side in (-1, 1))
                parts.append(f'<path d="M{x} {low}V{high}" stroke="{colour}" stroke-width="2" />')
                parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}" />')
    picture.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#888">{"".join(parts)}'
        f'<polyline points="{line}" fill="none" stroke="#2b7bba" stroke-width="2" />'
        f'<text x="{LEFT}" y="{HEIGHT - 32}">steps (of {last})</text>'
        f'<text x="{WIDTH - 12}" y="{HEIGHT - 10}" text-anchor="end">blue: mean score of the step\'s rollouts; orange: '
        "held out, one standard error; grey: learning rate 0</text></svg>\n"
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
