"""How measurements are told: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path


def tell(measured: object, where: str | None, show: Callable[[], None]) -> None:
    """`--json` alone (`where` is "-") prints JSON; otherwise the table, and JSON into a file where one is named."""
    text = json.dumps(measured, indent=1)
    if where == "-":
        print(text)
        return
    show()
    if where:
        Path(where).write_text(text + "\n")
