"""Send a run to a cluster as a Ray job, and follow it.

python -m engine.submit algo=grpo run.folder=/shared/runs cluster.address=http://head:8265
python -m engine.submit status <job id> cluster.address=http://head:8265
"""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.config import REPOSITORY, Config, ConfigError, cluster_address, load_config_for_cluster
from engine.data.base import DataError
from engine.job_package import MAX_BYTES, pack
from engine.job_server import ADDRESS_ADVICE, Job, JobServer, JobServerError, JobState, job_server_address
from engine.origin import git_version
from rewards.load import RewardError

MISTAKES = (ConfigError, DataError, RewardError, JobServerError)
COMMANDS = ("status", "logs", "follow", "stop")
GRACE = "grace_s"
"""Of a job's metadata: what the run has to stop."""

HELP = f"""\
Send a run to a cluster as a Ray job, and follow what it prints until it ends.

    python -m engine.submit [group=option ...] [key=value ...] run.folder=/shared/runs cluster.address=<address>
    python -m engine.submit status <job id> cluster.address=<address>     how it stands
    python -m engine.submit logs <job id> cluster.address=<address>       what it has printed so far
    python -m engine.submit follow <job id> cluster.address=<address>     the same, until it ends
    python -m engine.submit stop <job id> cluster.address=<address>

The settings are those of engine.main; `python -m engine.main --help` lists them. They are checked here, before anything
is sent. On the cluster the job runs engine.main and joins the cluster that it is on.

WHERE TO
    cluster.address is the job server's address, not the one that programs join a cluster with.
    {ADDRESS_ADVICE}
    When it is empty, RAY_API_SERVER_ADDRESS counts, then RAY_ADDRESS.
    Token authentication: RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN (or the path of a file with it
    in RAY_AUTH_TOKEN_PATH) in the environment of this command.

WHAT IS SENT: at most {MAX_BYTES >> 20} MiB
    Heliostat itself           the packages and conf/; the cluster's `python` must have the libraries
    reward.function            a file, with the modules beside it that it imports; not the files that it opens
    data.path, data.*_path     if they fit; an absolute path that does not fit, or is not here, is the cluster's
    algo._target_, and data's  a class of one's own: its module, with those that it imports from the same place
    model.path                 only from examples/; a hub id or any other folder is left to the cluster
    Environment variables are not sent: keys for trackers and hubs are those of the cluster's machines.

WHERE THE RUN LANDS
    In run.folder, which must be an absolute path: a relative one would lie in the job's temporary folder and be lost
    with it. Every machine of the cluster must see it, and nobody else may be writing the same run.

CTRL-C stops following; the job goes on.

STOP lets the run save first, within run.grace_s. A run that is killed goes on by itself, inside its job, from its
    newest checkpoint (run.max_restarts).

EXIT CODE
    0 the job succeeded; 1 it failed or was stopped; 2 a mistake, or no answer from the job server; 130 Ctrl-C
"""


def submit(argv: Sequence[str]) -> Job:
    """Sends the run and follows it to its end."""
    config = load_config_for_cluster(argv)
    address = job_server_address(config.cluster.address)
    package = pack(argv, config)
    server = JobServer(address)
    _refuse_second_writer(config, server)
    for note in package.notes:
        print(f"note: {note}")
    job_id = job_id_for(config.run.name, time.time())
    with tempfile.TemporaryDirectory(prefix="heliostat-") as folder:
        package.write(Path(folder))
        command = shlex.join(["python", "-m", "engine.main", *package.overrides])
        server.send(
            job_id=job_id, command=command, folder=Path(folder), metadata=_metadata(config), grace_s=config.run.grace_s
        )
    print(f"job {job_id} is sent to {server.address} ({package.num_bytes / (1 << 20):.1f} MiB)")
    print(f"the run's folder is {config.run_folder}", flush=True)
    return _follow(server, job_id)


def ask(command: str, arguments: Sequence[str]) -> Job:
    """About a job that was sent earlier, or its end."""
    job_id, *overrides = arguments or [""]
    if not job_id or "=" in job_id:
        raise ConfigError(
            f"{command} of which job?", advice=f"python -m engine.submit {command} <job id> cluster.address=<address>"
        )
    server = JobServer(job_server_address(cluster_address(overrides)))
    if command == "follow":
        return _follow(server, job_id)
    if command == "stop":
        before = server.job(job_id)
        job = before if before.state.has_ended else server.stop(job_id, grace_s=float(before.metadata.get(GRACE, 0)))
        stopping = "" if job.state.has_ended else " still, and was asked to stop"
        print(f"job {job_id} is {job.state.value}{' already' if job is before else stopping}")
        return job
    job = server.job(job_id)
    print(server.output(job_id) if command == "logs" else _described(job), end="")
    return job


def job_id_for(run_name: str, now_s: float) -> str:
    """Readable, and of letters that need no quotes.

    >>> import re
    >>> re.sub("[0-9]", "0", job_id_for("my run", 0.0))
    'my-run-0000-000000'
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", run_name)
    return f"{name}-{time.strftime('%m%d-%H%M%S', time.localtime(now_s))}"


def _follow(server: JobServer, job_id: str) -> Job:
    how = f"python -m engine.submit %s {job_id} cluster.address={server.address}"
    try:
        job = server.follow(job_id, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(f"\njob {job_id} goes on\n  follow it: {how % 'follow'}\n  stop it:   {how % 'stop'}", file=sys.stderr)
        raise
    except JobServerError as error:
        raise JobServerError(f"{error}\n  The job may be going on; to follow it: {how % 'follow'}") from error
    print(f"job {job_id}: {job.state.value}")
    return job


def _refuse_second_writer(config: Config, server: JobServer) -> None:
    folder = str(config.run_folder)
    for job in server.jobs():
        if not job.state.has_ended and job.metadata.get("run_folder") == folder:
            raise ConfigError(
                f"job {job.id} is writing {folder} right now.",
                keys=("run.name", "run.folder"),
                advice=f"Set another run.name, or stop it: python -m engine.submit stop {job.id} "
                f"cluster.address={server.address}",
            )


def _metadata(config: Config) -> Mapping[str, str]:
    """What the dashboard shows beside the job."""
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    known = {"run": config.run.name, "run_folder": str(config.run_folder), "heliostat": version}
    known |= {GRACE: f"{config.run.grace_s:g}"}
    git = git_version()
    return known | ({"git": git} if git else {})


def _described(job: Job) -> str:
    lines = [f"job {job.id}: {job.state.value}", *(f"  {name}: {value}" for name, value in job.metadata.items())]
    for name, moment_s in (("started", job.started_s), ("ended", job.ended_s)):
        if moment_s is not None:
            lines.append(f"  {name}: {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(moment_s))}")
    message = job.message.partition("\n")[0]  # what follows is the end of its output
    return "\n".join([*lines, f"  {message}", ""])


def run(argv: Sequence[str]) -> int:
    """The exit code: 0 the job succeeded (or was asked about), 1 it failed, 2 a mistake of the person's, 130 Ctrl-C."""
    if {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    try:
        if argv and argv[0] in COMMANDS:
            job = ask(argv[0], argv[1:])
            return int(argv[0] == "follow" and job.state is not JobState.SUCCEEDED)
        return int(submit(argv).state is not JobState.SUCCEEDED)
    except MISTAKES as mistake:
        print(f"heliostat: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
