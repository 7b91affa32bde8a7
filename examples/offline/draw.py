"""Draw what offline runs learned as an SVG: one picture a metric, a step's own value as a line, held out as points.

python examples/offline/draw.py examples/offline/curves.svg runs/smollm2_sft:loss runs/smollm2_dpo:loss,accuracy
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.draw_curve import BELOW, BLUE, LEFT, ORANGE, RIGHT, Frame, svg

WIDTH, HEIGHT = 420, 240


def main(picture: Path, *runs: str) -> None:
    named = [run.partition(":") for run in runs]
    panels = [(Path(folder), metric) for folder, _, metrics in named for metric in metrics.split(",")]
    parts = []
    for number, (folder, metric) in enumerate(panels):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        parts.append(f'<g transform="translate({number * WIDTH} 0)">{panel(rows, metric, folder.name)}</g>')
    picture.write_text(svg(WIDTH * len(panels), HEIGHT, "".join(parts)))


def panel(rows: list[dict], metric: str, name: str) -> str:
    of_steps = [(row["step"], row[metric]) for row in rows if metric in row]
    held_out = [(row["step"], row[f"held_out/{metric}"]) for row in rows if f"held_out/{metric}" in row]
    highest = max(value for _, value in [*of_steps, *held_out])
    top = 1.0 if metric == "accuracy" else 1.1 * highest
    frame = Frame(width=WIDTH, height=HEIGHT, last=max(step for step, _ in of_steps), top=top)
    line = " ".join("{},{}".format(*frame.place(step, value)) for step, value in of_steps)
    points = "".join(
        '<circle cx="{}" cy="{}" r="4" fill="{}" />'.format(*frame.place(step, value), ORANGE)
        for step, value in held_out
    )
    legend = f"{name}: {metric} (blue: each step's rows; orange: held out)"
    return (
        f'{frame.grid()}<polyline points="{line}" fill="none" stroke="{BLUE}" stroke-width="2" />{points}'
        f'<text x="{LEFT}" y="{HEIGHT - BELOW + 24}">steps (of {frame.last})</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 10}" text-anchor="end">{legend}</text>'
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
