"""A cluster's job server, through Ray's job API: send a job, follow it, ask about it, stop it.

Ray is imported when a server is asked, for it takes a second.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from engine.config_error import ConfigError

ADDRESS_ADVICE = (
    "Give http://<head node>:8265 (or https://), where Ray's dashboard answers, or auto on a machine of the cluster."
)
TOKEN_ADVICE = (
    "For a cluster with token authentication set RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN, "
    "or the path of a file with it in RAY_AUTH_TOKEN_PATH."
)
RETRY_S = 1.0
NOT_READY = "No available agent"
"""What a server answers whose cluster has only just started."""
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
"""On top of the run's grace."""
STOP_WAIT_ENV = "RAY_JOB_STOP_WAIT_TIME_S"
"""What Ray reads in the job's own environment; without it a job is killed 3 s after it is asked to stop."""
ENDS_WITHIN_S = 10
"""That the job's watcher has to bury what the run leaves behind."""


class JobServerError(Exception):
    """The job server cannot be reached, does not let us in, or does not do what it is asked: for people."""


class JobState(Enum):
    """How a job stands; the names are Ray's."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def has_ended(self) -> bool:
        return self not in (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the server knows of a job.

    Example:
        Job(id="grpo-nano-arithmetic-1124-181530", state=JobState.RUNNING, message="Job is currently running.",
            started_s=1795544130.0, ended_s=None, metadata={"run_folder": "/shared/runs/grpo-nano-arithmetic"})
    """

    id: str
    state: JobState
    message: str
    started_s: float | None
    """Since 1970."""
    ended_s: float | None
    metadata: Mapping[str, str]


def job_server_address(configured: str) -> str:
    """Where jobs are sent: `cluster.address` if it is set, else what Ray's own variables say."""
    places = {"cluster.address": configured}
    places |= {name: os.environ.get(name, "") for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}
    name, address = next(((name, address) for name, address in places.items() if address), ("", ""))
    if not name:
        raise ConfigError(
            "there is no cluster to send the run to: cluster.address is empty.",
            keys=("cluster.address",),
            advice=f"{ADDRESS_ADVICE} RAY_API_SERVER_ADDRESS or RAY_ADDRESS in the environment says the same.",
        )
    if address != "auto" and not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{name} is {address}, which is not the address of a job server.",
            keys=("cluster.address",),
            advice=f"{ADDRESS_ADVICE} host:port without http:// and ray:// are for programs that join a cluster.",
        )
    return address


class JobServer:
    """One cluster's job server. Everything here raises JobServerError, for people."""

    def __init__(self, address: str) -> None:
        from ray.job_submission import JobSubmissionClient

        # What Ray logs on the way (uploads, addresses) is either in our own lines or in our errors.
        logging.disable(logging.WARNING)
        # Ray lets the environment win over what its client is given; here what the person typed wins.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        self.address = address
        with self._told():
            self._client = JobSubmissionClient(address)
            self.address = self._client.get_address()

    def send(self, *, job_id: str, command: str, folder: Path, metadata: Mapping[str, str], grace_s: float) -> None:
        """A job that runs `command` in a copy of `folder`, and has `grace_s` to end when it is asked to stop."""
        patience = {STOP_WAIT_ENV: str(math.ceil(grace_s) + ENDS_WITHIN_S)}
        with self._told():
            deadline = time.monotonic() + START_TIMEOUT_S
            while True:
                try:
                    self._client.submit_job(
                        entrypoint=command,
                        submission_id=job_id,
                        runtime_env={"working_dir": str(folder), "env_vars": patience},
                        metadata=dict(metadata),
                    )
                    return
                except RuntimeError as error:
                    if NOT_READY not in str(error) or time.monotonic() > deadline:
                        raise
                time.sleep(RETRY_S)

    def jobs(self) -> Sequence[Job]:
        """Every job that was sent to this cluster."""
        with self._told():
            return [_job(details) for details in self._client.list_jobs() if details.submission_id]

    def job(self, job_id: str) -> Job:
        with self._told():
            return _job(self._client.get_job_info(job_id))

    def output(self, job_id: str) -> str:
        """All that the job has printed so far."""
        with self._told():
            return self._client.get_job_logs(job_id)

    def follow(self, job_id: str, show: Callable[[str], None]) -> Job:
        """Shows the job's output as it comes, from its first line to its last, and answers when the job has ended."""
        shown = 0
        while True:
            shown = asyncio.run(self._tail(job_id, shown, show))
            job = self.job(job_id)  # before its output: what an ended job has printed is all there
            rest = self.output(job_id)[shown:]
            show(rest)
            shown += len(rest)
            if job.state.has_ended:
                return job
            time.sleep(RETRY_S)

    def stop(self, job_id: str, *, grace_s: float) -> Job:
        """Asks the job to stop, and waits until it has."""
        with self._told():
            self._client.stop_job(job_id)
        deadline = time.monotonic() + grace_s + STOP_TIMEOUT_S
        while not (job := self.job(job_id)).state.has_ended and time.monotonic() < deadline:
            time.sleep(RETRY_S)
        return job

    async def _tail(self, job_id: str, shown: int, show: Callable[[str], None]) -> int:
        """Shows what comes after the first `shown` characters; the number that has been shown when the tail breaks."""
        import aiohttp

        position = 0
        try:
            async for text in self._client.tail_job_logs(job_id):
                new = text[max(0, shown - position) :]
                position += len(text)
                if new:
                    show(new)
        except (aiohttp.ClientError, RuntimeError):
            pass  # the connection broke: asking for the job's state tells whether the server is there
        return max(shown, position)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Ray's errors in words for people."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            reason = error.message.splitlines()[0]
            raise JobServerError(f"the job server at {self.address} refuses: {reason}\n  {TOKEN_ADVICE}") from error
        except OSError as error:  # also everything that requests raises
            raise JobServerError(
                f"no job server answers at {self.address}: {error}\n  {ADDRESS_ADVICE} Is the cluster running?"
            ) from error
        except (RuntimeError, ValueError) as error:  # all else that Ray's client raises about an answer
            raise JobServerError(f"the job server at {self.address}: {error}") from error


def _job(details: object) -> Job:
    return Job(
        id=details.submission_id,
        state=JobState(details.status.value),
        message=details.message or "",
        started_s=details.start_time / 1000 if details.start_time else None,
        ended_s=details.end_time / 1000 if details.end_time else None,
        metadata=details.metadata or {},
    )
