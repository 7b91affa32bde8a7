"""Files with rows, as tests write them."""

import json
from collections.abc import Iterable
from pathlib import Path

LLAMA_FACTORY = Path(__file__).parents[4] / "shared/data/llamafactory_demo"


def write_rows(path: Path, rows: Iterable[object]) -> str:
    """JSON lines; a row that is a text already is written as it is."""
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)
