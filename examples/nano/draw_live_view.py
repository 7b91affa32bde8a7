"""Draw the live view of a finished run as an SVG.

python examples/nano/draw_live_view.py runs/grpo-nano-arithmetic/metrics.jsonl examples/nano/live_view.svg
"""

import io
import json
import re
import sys
from pathlib import Path

from rich.console import Console

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 90, 24


def main(metrics: Path, picture: Path) -> None:
    from engine.live_view import LiveView, Shown

    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    done = tuple(row for row in rows if "time/step_s" in row)
    shown = Shown(
        name=metrics.parent.name,
        steps=int(done[-1]["step"]),
        elapsed_s=sum(row["time/step_s"] for row in done),
        since_step_s=0.0,
        doing="done",
        doing_s=0.0,
        done=done,
        held_out=tuple(row for row in rows if "held_out/sampled" in row or "held_out/nll" in row),
    )
    console = Console(record=True, file=io.StringIO(), width=WIDTH, height=HEIGHT, force_terminal=True)
    console.print(LiveView(shown=shown))
    drawn = console.export_svg(title="python -m engine.main", unique_id="live-view")
    # A picture asks nobody for a font: what the reader's machine calls monospace does.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    picture.write_text(drawn)


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    main(Path(sys.argv[1]), Path(sys.argv[2]))
