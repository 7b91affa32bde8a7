"""A run that is asked to stop, by SIGTERM or Ctrl-C: at once where nothing is half done, otherwise as soon as it is."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
ONE_REQUEST_S = 0.5


class StopAsked(KeyboardInterrupt):
    """Raised in the main thread when a signal asks the run to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """As a shell tells of a signal: 143 after SIGTERM, 130 after Ctrl-C."""
        return 128 + self.number


class StopSignals:
    """What the signals do: raise `StopAsked`, at once or, inside `held`, at the next moment that allows it.

    A second signal always raises at once; one that comes right after the first is taken for the same, for a job server
    sends it to every process, and whoever watches over the run passes its own on.
    """

    def __init__(self) -> None:
        self._asked: int | None = None
        self._asked_s = 0.0
        self._holds = False

    def install(self) -> None:
        """In the main thread, which is the one that signals interrupt."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    @property
    def asked(self) -> StopAsked:
        """What a KeyboardInterrupt of this process means: libraries raise one of their own in place of ours."""
        return StopAsked(self._asked if self._asked is not None else signal.SIGINT)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block that is not to be left half done. Raises at its end what was asked for meanwhile."""
        with self._holding(True):
            yield
        self.check()

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Inside `held`, a block that may be left at any moment; at once if it was asked for before."""
        with self._holding(False):
            self.check()
            yield

    def check(self) -> None:
        """Raises StopAsked if a stop was asked for."""
        if self._asked is not None and not self._holds:
            raise StopAsked(self._asked)

    @contextmanager
    def _holding(self, holds: bool) -> Iterator[None]:
        before, self._holds = self._holds, holds
        try:
            yield
        finally:
            self._holds = before

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked is None:
            self._asked, self._asked_s = number, time.monotonic()
            if self._holds:
                return
        elif time.monotonic() - self._asked_s < ONE_REQUEST_S:
            return
        raise StopAsked(number)
