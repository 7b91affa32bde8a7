"""The judge's server as the driver sees it: where it answers, and whether it still lives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray import ObjectRef

from workers.group import WorkerGroup
from workers.judge_endpoint import JudgeEndpoint
from workers.stopped import RunStopped

TOLD_WITHIN_S = 2.0
"""A server's death may reach the driver a moment after the failures that it causes."""


class JudgeServerGroup(WorkerGroup):
    """The language model that functions ask. Empty for a run whose functions ask nobody, or somebody else."""

    def endpoint(self) -> JudgeEndpoint:
        [endpoint] = self.wait([actor.endpoint.remote() for actor in self._actors], verb="say where it answers")
        return endpoint

    def watch(self) -> None:
        """From now on its death is known when it happens."""
        self._ends: list[ObjectRef] = [actor.watch.remote() for actor in self._actors]

    @contextmanager
    def needed(self) -> Iterator[None]:
        """A block in which responses are judged. Raises, at its end, what ended the server; where the block itself
        stops the run, that is a note to it."""
        try:
            yield
        except RunStopped as stopped:
            if death := self._death(TOLD_WITHIN_S):
                stopped.add_note("\n".join([str(death), *getattr(death, "__notes__", ())]))
            raise
        if death := self._death(0.0):
            raise death

    def _death(self, timeout_s: float) -> RunStopped | None:
        if not self._actors:
            return None
        ended, _ = ray.wait(self._ends, timeout=timeout_s)
        try:
            self.wait(ended, verb="answer the rewards")
        except RunStopped as death:
            return death
        return None
