"""The verbs of a worker with something around each of them, be they asked at once or awaited."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

Around = Callable[[Any, str], AbstractContextManager[None]]
"""For a worker and the name of a verb: what is around that call."""


def verbs_within(worker_class: type, around: Around) -> dict[str, Callable[..., Any]]:
    """The public methods of a class by name, each within what `around` gives for it."""
    verbs = inspect.getmembers(worker_class, inspect.isfunction)
    return {name: _within(verb, around) for name, verb in verbs if not name.startswith("_")}


def _within(verb: Callable[..., Any], around: Around) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(verb):

        @functools.wraps(verb)
        async def call_async(self: Any, *arguments: Any, **named: Any) -> Any:
            with around(self, verb.__name__):
                return await verb(self, *arguments, **named)

        return call_async

    @functools.wraps(verb)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        with around(self, verb.__name__):
            return verb(self, *arguments, **named)

    return call
