"""Draw a run's mean reward over its steps as an SVG.

python examples/nano/draw_curve.py runs/grpo-nano-arithmetic/metrics.jsonl examples/nano/curve.svg
"""

import json
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 260, 48, 36


def main(metrics: Path, picture: Path) -> None:
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rewards = [(row["step"], row["reward/mean"]) for row in rows if "reward/mean" in row]
    held_out = [(row["step"], row["held_out/sampled"]) for row in rows if "held_out/sampled" in row]
    last = max(step for step, _ in rewards)

    def place(step: float, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - 12) * step / last
        return f"{x:.1f},{HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 16) * value:.1f}"

    line = " ".join(place(step, value) for step, value in rewards)
    grid, labels = [], []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = place(0, value).split(",")
        grid.append(f'<path d="M{x} {y}H{WIDTH - 12}" stroke="#8884" />')
        labels.append(f'<text x="{LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{value:g}</text>')
    dots = []
    for point in held_out:
        x, y = place(*point).split(",")
        dots.append(f'<circle cx="{x}" cy="{y}" r="5" fill="#e07b00" />')
    picture.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#888">{"".join(grid)}{"".join(labels)}'
        f'<polyline points="{line}" fill="none" stroke="#2b7bba" stroke-width="2" />{"".join(dots)}'
        f'<text x="{LEFT}" y="{HEIGHT - 10}">steps (of {last})</text>'
        f'<text x="{WIDTH - 12}" y="{HEIGHT - 10}" text-anchor="end">'
        "blue: mean reward of the step's rollouts; orange: held-out accuracy, sampled</text></svg>\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
