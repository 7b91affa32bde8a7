"""What the person sees while a run goes on: lines, and on a terminal a live picture below the newest of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from engine.live_view import LiveView, Shown

REFRESHES_PER_S = 4


class Screen:
    """Standard output. A pipe, a log file and a dumb terminal get lines alone."""

    def __init__(self, look: Callable[[], Shown]) -> None:
        """`look` gives the present moment of the run; it is asked from another thread."""
        self._look = look
        self.console = Console(file=sys.stdout, highlight=False)
        # FORCE_COLOR makes rich take a pipe for a terminal: colours are welcome there, a moving picture is not.
        self.is_live = self.console.is_interactive and sys.stdout.isatty()
        self._live = Live(
            console=self.console,
            get_renderable=lambda: LiveView(shown=look()),
            refresh_per_second=REFRESHES_PER_S,
            vertical_overflow="crop",
        )
        if self.is_live:
            self._live.start()

    def say(self, wall_s: float, text: str) -> None:
        """One line, with the time since the process started. In a pipe it stays one line, however long it is."""
        time = f"{wall_s:6.1f} s"
        if not self.is_live:
            self.console.print(Text.assemble((time, "dim"), "  ", text), soft_wrap=True)
            return
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(Text(time, style="dim", no_wrap=True), Text(text, overflow="fold"))
        self.console.print(line)

    def block(self, lines: Sequence[str]) -> None:
        """Lines that belong together, a long one folded where there is a terminal. They may hold what a model wrote:
        nothing in them is markup, and what the output cannot encode is written as an escape."""
        encoding = self.console.encoding
        text = "\n".join(lines).encode(encoding, "backslashreplace").decode(encoding)
        self.console.print(Text(text, overflow="fold"), soft_wrap=not self.is_live)

    def show(self, picture: RenderableType) -> None:
        """Something that has a form of its own, for a terminal."""
        self.console.print(picture)

    def close(self) -> None:
        """Give the terminal back; the last picture of a run that has made steps stays."""
        self._live.transient = not self._look().done
        self._live.stop()
