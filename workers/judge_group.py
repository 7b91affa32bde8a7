"""The judge's server as the driver sees it: where it answers, and whether it still does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from workers.group import WorkerGroup
from workers.judge_endpoint import JudgeEndpoint
from workers.stopped import RunStopped, WorkerDied


class JudgeServerGroup(WorkerGroup):
    """The language model that functions ask. Empty for a run whose functions ask nobody, or somebody else."""

    def endpoint(self) -> JudgeEndpoint:
        [endpoint] = self.wait([actor.endpoint.remote() for actor in self._actors], verb="say where it answers")
        return endpoint

    @contextmanager
    def needed(self) -> Iterator[None]:
        """A block in which responses are judged. Raises, at its end, what became of a server that cannot answer any
        more; where the block itself stops the run, that is a note to it."""
        try:
            yield
        except WorkerDied:  # its own death, or one that it has no part in
            raise
        except RunStopped as stopped:
            try:
                self._check()
            except RunStopped as death:
                stopped.add_note("\n".join([str(death), *getattr(death, "__notes__", ())]))
            raise
        self._check()

    def _check(self) -> None:
        self.wait([actor.check.remote() for actor in self._actors], verb="answer the rewards")
