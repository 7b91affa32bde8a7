"""A run sent to a cluster is the run that was typed: its files go along, mistakes stay here, and its end is told."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from runs import REPOSITORY

from engine import job_package, job_server
from engine.config import ConfigError, load_config, load_config_for_cluster
from engine.job_package import JobPackage, pack, rewritten
from engine.job_server import JobServer, JobState, job_server_address
from rewards.load import RewardError

ELSEWHERE = "run.folder=/shared/runs"
COMMAND = [sys.executable, "-m", "engine.submit"]
SENT = (
    "import one\nimport workers\n\ndef sent(**row) -> float:\n    return one.ONE * ('_ray_pkg_' in workers.__file__)\n"
)
REWARD = "def odd(response: str, answer: str, **row) -> float:\n    return float(len(response) % 2)\n"
TOKEN = "a-token-of-sixteen-letters-and-more"
SMALL = (
    *("rollout.engine=hf", "rollout.prompts_per_step=2", "rollout.responses_per_prompt=2"),
    *("evaluation.prompts=0", "algo.kl_coef=0", "run.tensorboard=false"),
)


def packed(*argv: str) -> JobPackage:
    return pack(argv, load_config_for_cluster([*argv, ELSEWHERE]))


def places(package: JobPackage) -> set[str]:
    return {file.place for file in package.files}


# ----------------------------------------------------------------------------- the package


def test_the_default_run_brings_our_packages_and_its_policy_and_nothing_else() -> None:
    package = packed()
    tops = {place.split("/")[0] for place in places(package)}
    assert tops == {"engine", "workers", "rewards", "conf", "examples"}
    assert {"engine/main.py", "conf/config.yaml", "examples/nano/policy/model.safetensors"} <= places(package)
    assert not any("__pycache__" in place or place.startswith("examples/nano/blank") for place in places(package))
    assert package.num_bytes < 5 << 20
    assert package.notes == ()
    # A typed path would be a model of one's own, with other settings than nano's.
    assert package.overrides == ("cluster.address=auto",)
    typed = packed("model=nano", f"model.path={REPOSITORY}/examples/nano/policy")
    assert typed.overrides == ("model=nano", "cluster.address=auto", "model.path=examples/nano/policy")


def test_the_job_joins_the_cluster_that_it_is_on_and_all_else_is_as_typed() -> None:
    package = packed("algo=grpo", "cluster.address=http://head:8265", "++train.betas=[0.9,0.95]", "run.steps=3")
    assert package.overrides[:3] == ("algo=grpo", "++train.betas=[0.9,0.95]", "run.steps=3")
    assert [text for text in package.overrides if "cluster.address" in text] == ["cluster.address=auto"]


def test_a_package_written_out_composes_to_the_same_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    rows = tmp_path / "it's, {rows}.jsonl"
    rows.write_text('{"prompt": "1+1=", "answer": "2"}\n' * 3)
    typed = [f"reward.function={tmp_path}/mine.py:odd", "data=files", "data.held_out=1", "run.steps=3"]
    typed.append("data.path='{}'".format(str(rows).replace("'", r"\'")))
    package = pack(typed, load_config_for_cluster([*typed, ELSEWHERE]))
    folder = tmp_path / "job"
    package.write(folder)
    script = (
        "import json, sys; from engine.config import load_config; from engine.data.base import Split;"
        "from rewards.load import load_reward; config = load_config(sys.argv[1:]);"
        "json.dump([config.model.path, config.run.steps, config.reward.function, config.cluster.address,"
        "len(config.data.questions(Split.TRAIN)), load_reward(config.reward.function)(response='abc', answer='')],"
        "sys.stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *package.overrides], cwd=folder, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == ["examples/nano/policy", 3, "inputs/reward.function/mine.py:odd", "auto", 2, 1.0]


def test_a_reward_brings_the_modules_beside_it_that_it_imports(tmp_path: Path) -> None:
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "__init__.py").write_text("from .deep import half\n")
    (tmp_path / "helpers" / "deep.py").write_text("import json\n\ndef half(x):\n    return x / 2\n")
    (tmp_path / "other.py").write_text("raise SystemExit\n")
    (tmp_path / "mine.py").write_text("import helpers\n" + REWARD)
    package = packed(f"reward.function={tmp_path}/mine.py:odd")
    assert {place for place in places(package) if place.startswith("inputs/")} == {
        "inputs/reward.function/mine.py",
        "inputs/reward.function/helpers/__init__.py",
        "inputs/reward.function/helpers/deep.py",
    }


def test_an_algorithm_of_ones_own_goes_along_as_the_module_that_it_is() -> None:
    assert "examples/algorithms/shuffled.py" in places(
        packed("algo._target_=examples.algorithms.shuffled.ShuffledGRPO")
    )


def test_a_broken_reward_is_told_here(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    with pytest.raises(RewardError, match="did you mean odd"):
        packed(f"reward.function={tmp_path}/mine.py:od")
    with pytest.raises(RewardError, match=r"rewards\.numbr"):
        packed("reward.function=rewards.numbr:exact")


def test_a_reward_that_imports_what_only_the_cluster_has_is_sent_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import surely_not_here\n" + REWARD)
    package = packed(f"reward.function={tmp_path}/mine.py:odd")
    assert "surely_not_here" in package.notes[0]
    assert "inputs/reward.function/mine.py" in places(package)


def test_data_is_sent_where_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}\n" * 1000)
    reward = "reward.function=rewards.number:exact"
    package = packed("data=files", "data.path=rows.jsonl", reward)
    assert "data.path=inputs/data.path/rows.jsonl" in package.overrides
    assert "inputs/data.path/rows.jsonl" in places(package)

    monkeypatch.setattr(job_package, "MAX_BYTES", packed(reward).num_bytes + 1000)
    with pytest.raises(ConfigError, match=r"rows\.jsonl") as refused:
        packed("data=files", "data.path=rows.jsonl", reward)
    assert "absolute path" in refused.value.advice
    package = packed("data=files", f"data.path={tmp_path}/rows.jsonl", reward)
    assert f"data.path={tmp_path}/rows.jsonl" in package.overrides
    assert "not sent" in package.notes[0]


def test_several_files_folders_with_a_split_and_registries_are_sent_with_all_that_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/rows.jsonl", "b/rows.jsonl", "c/train.jsonl", "lf/plain.json", "lf/images/1.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("{}\n")
    Path("lf/dataset_info.json").write_text('{"plain": {"file_name": "plain.json"}}')
    package = packed("algo=sft", "data=files", "data.path=[a/rows.jsonl,b/rows.jsonl]", "data.held_out_path=c@train")
    assert "data.path=[inputs/data.path/0/rows.jsonl,inputs/data.path/1/rows.jsonl]" in package.overrides
    assert "data.held_out_path=inputs/data.held_out_path/c@train" in " ".join(package.overrides).replace("'", "")
    assert {"inputs/data.path/0/rows.jsonl", "inputs/data.held_out_path/c/train.jsonl"} <= set(places(package))
    package.write(tmp_path / "job")
    monkeypatch.chdir(tmp_path / "job")
    assert load_config(package.overrides).data.path == (
        "inputs/data.path/0/rows.jsonl",
        "inputs/data.path/1/rows.jsonl",
    )
    monkeypatch.chdir(tmp_path)

    package = packed("algo=sft", "data=files", "data.path=lf/dataset_info.json", "data.names=[plain]")
    assert "data.path=inputs/data.path/dataset_info.json" in package.overrides
    assert {"inputs/data.path/plain.json", "inputs/data.path/images/1.jpg"} <= set(places(package))
    hub = packed("algo=sft", "data=files", "data.path=[owner/name:en@train,owner/other]")
    assert not [text for text in hub.overrides if "inputs" in text]


def test_data_that_only_the_cluster_has_needs_an_absolute_path() -> None:
    reward = "reward.function=rewards.number:exact"
    assert "/shared/rows.jsonl" in packed("data=files", "data.path=/shared/rows.jsonl", reward).notes[0]
    with pytest.raises(ConfigError, match="no such file"):
        packed("data=files", "data.path=rows.jsonl", reward)


def test_a_model_outside_the_repository_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(REPOSITORY / "examples/nano/policy", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    package = packed("model=nano", "model.path=mine")
    assert f"model.path={tmp_path}/mine" in package.overrides
    assert str(tmp_path / "mine") in package.notes[0]
    assert "/shared/model" in packed("model.path=/shared/model").notes[0]
    assert "model.path=org/name" in packed("model.path=org/name").overrides
    assert "critic.path=org/name" in packed("algo=ppo", "critic.path=org/name").overrides
    critic = packed("algo=ppo", "model=nano", "critic.path=mine")
    assert f"critic.path={tmp_path}/mine" in critic.overrides and f"find {tmp_path}/mine" in critic.notes[0]
    with pytest.raises(ConfigError, match="no such folder"):
        packed("model.path=./nowhere")


def test_rewritten_overrides_come_last_and_read_back_as_they_were() -> None:
    assert rewritten(["a.b=1", "+c.d={e: 1}", "c.d=2"], {"c.d": "x y"}) == ("a.b=1", "c.d='x y'")


# ----------------------------------------------------------------------------- refusals


def test_a_run_folder_that_would_be_lost_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"run\.folder is runs") as refused:
        load_config_for_cluster([])
    assert "absolute" in refused.value.advice


def test_the_address_is_that_of_a_job_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="no cluster") as refused:
        job_server_address("")
    assert "RAY_API_SERVER_ADDRESS" in refused.value.advice
    monkeypatch.setenv("RAY_ADDRESS", "http://one:8265")
    assert job_server_address("") == "http://one:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://two:8265")
    assert job_server_address("") == "http://two:8265"
    assert job_server_address("https://typed") == "https://typed"
    for wrong in ("head:6379", "ray://head:10001"):
        with pytest.raises(ConfigError, match=f"cluster.address is {wrong}"):
            job_server_address(wrong)


def test_a_run_does_not_join_a_job_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="job server") as refused:
        load_config(["cluster.address=http://head:8265"])
    assert "engine.submit" in refused.value.advice
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with pytest.raises(ConfigError, match="RAY_ADDRESS is http://head:8265"):
        load_config([])


def ask(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=REPOSITORY,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def test_help_says_where_to_and_what_is_sent() -> None:
    shown = ask("--help")
    assert shown.returncode == 0
    for word in ("cluster.address", "RAY_AUTH_TOKEN", "100 MiB", "run.folder", "stop <job id>"):
        assert word in shown.stdout


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (("train.learning_rat=1", ELSEWHERE), "train.learning_rate"),
        ((ELSEWHERE,), "no job server answers"),
        (("status",), "of which job"),
    ],
)
def test_a_mistake_ends_with_code_2_and_what_to_do(mistake: tuple[str, ...], told: str) -> None:
    done = ask(*mistake, f"cluster.address=http://127.0.0.1:{free_port()}")
    assert done.returncode == 2, done.stdout
    assert told in done.stdout
    assert "Traceback" not in done.stdout


# ----------------------------------------------------------------------------- following


class BreakingClient:
    """Ray's client for a job that prints three lines, over a connection that breaks within the second, once."""

    def __init__(self) -> None:
        self.printed = "one\ntw"
        self.tails = 0

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self.tails += 1
        yield self.printed
        if self.tails == 1:
            self.printed = "one\ntwo\n"
            raise RuntimeError("WebSocket connection closed unexpectedly")
        self.printed = "one\ntwo\nthree\n"

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        status = SimpleNamespace(value="RUNNING" if self.tails == 1 else "SUCCEEDED")
        return SimpleNamespace(
            submission_id=job_id, status=status, message=None, start_time=None, end_time=None, metadata=None
        )

    def get_job_logs(self, job_id: str) -> str:
        return self.printed


def test_a_broken_connection_repeats_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server, "RETRY_S", 0.0)
    server = object.__new__(JobServer)  # without the connection
    server.address, server._client = "http://head:8265", BreakingClient()
    shown: list[str] = []
    assert server.follow("a", shown.append).state is JobState.SUCCEEDED
    assert "".join(shown) == "one\ntwo\nthree\n"
    assert server._client.tails == 2


# ----------------------------------------------------------------------------- a cluster with its job server


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCluster:
    address: str

    def ask(self, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        return ask(*arguments, f"cluster.address={self.address}", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)

    def job(self, *overrides: str) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return subprocess.Popen(
            [*COMMAND, *overrides, f"cluster.address={self.address}"],
            cwd=REPOSITORY,
            env=inherited | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


STARTS = 3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def job_cluster() -> Iterator[JobCluster]:
    """Ray as a team starts it on its head node, on loopback and behind a token."""
    folder = Path(tempfile.mkdtemp(prefix="hs-", dir="/tmp"))  # short: Ray's sockets lie below it
    try:
        head, port = start_head(folder)
        cluster = JobCluster(address=f"http://127.0.0.1:{port}")
        try:
            wait_until_it_answers(cluster)
            yield cluster
        finally:
            family = psutil.Process(head.pid).children(recursive=True)
            head.send_signal(signal.SIGTERM)
            head.wait(timeout=60)
            _, alive = psutil.wait_procs(family, timeout=10)
            for process in alive:
                process.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_it_answers(cluster: JobCluster) -> None:
    """A job server that has just started accepts connections before it answers."""
    deadline = time.monotonic() + 120
    while "does not exist" not in (told := cluster.ask("status", "nobody").stdout):
        assert time.monotonic() < deadline, told


def start_head(folder: Path) -> tuple[subprocess.Popen, int]:
    """The head node's process, and the port of its job server; a busy machine's Ray may give up on its own start."""
    # A job runs the cluster's `python`.
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    log = folder / "start.log"
    for number in range(STARTS):
        port = free_port()
        command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--port=0", "--num-cpus=6"]
        command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
        command += ["--disable-usage-stats", f"--temp-dir={folder}/{number}", f"--object-store-memory={1 << 28}"]
        command += [f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"]
        with log.open("a") as output:
            head = subprocess.Popen(
                command,
                cwd=folder,  # what the job needs is sent, not found here
                env=os.environ | {"PATH": programs, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while head.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return head, port
            time.sleep(0.2)
        if head.poll() is None:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
    raise TimeoutError(log.read_text())


def overrides_for(folder: Path, *, name: str, steps: int) -> Sequence[str]:
    """A small run whose reward is 1 where the judge's own code, and a module beside the reward, were sent."""
    (folder / "mine.py").write_text(SENT)
    (folder / "one.py").write_text("ONE = 1.0\n")
    reward = f"reward.function={folder}/mine.py:sent"
    return (*SMALL, reward, f"run.folder={folder}", f"run.name={name}", f"run.steps={steps}")


@pytest.mark.slow
def test_without_the_right_token_nothing_is_answered(job_cluster: JobCluster) -> None:
    for done in (
        job_cluster.ask("status", "any", token="b-token-of-sixteen-letters-and-more"),
        ask("status", "any", f"cluster.address={job_cluster.address}"),
    ):
        assert done.returncode == 2, done.stdout
        assert "RAY_AUTH_TOKEN" in done.stdout
        assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_a_job_that_fails_is_told_in_its_own_words(job_cluster: JobCluster, tmp_path: Path) -> None:
    data = ("data=files", "data.path=/nowhere/rows.jsonl", "reward.function=rewards.number:exact")
    done = job_cluster.ask(*data, f"run.folder={tmp_path}", "run.name=my run")
    assert done.returncode == 1, done.stdout
    job_id = re.search(r"^job (my-run-\S+) is sent", done.stdout, re.MULTILINE).group(1)
    assert "the cluster must have /nowhere/rows.jsonl" in done.stdout  # said here
    assert "heliostat: /nowhere/rows.jsonl: no such file" in done.stdout  # said there
    assert done.stdout.splitlines()[-1] == f"job {job_id}: FAILED"
    status = job_cluster.ask("status", job_id)
    assert status.returncode == 0
    assert f"job {job_id}: FAILED" in status.stdout
    assert f"run_folder: {tmp_path}/my run" in status.stdout
    unknown = job_cluster.ask("logs", "another")
    assert unknown.returncode == 2
    assert "another does not exist" in unknown.stdout


@pytest.mark.slow
def test_a_run_is_sent_followed_to_its_end_and_remembered(job_cluster: JobCluster, tmp_path: Path) -> None:
    done = job_cluster.ask(*overrides_for(tmp_path, name="two", steps=2))
    assert done.returncode == 0, done.stdout
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [row["reward/mean"] for row in rows] == [1.0, 1.0]
    assert (tmp_path / "two" / "export" / "config.json").exists()
    job_id = re.search(r"^job (two-\S+) is sent", done.stdout, re.MULTILINE).group(1)
    assert f"job {job_id}: SUCCEEDED" in job_cluster.ask("status", job_id).stdout
    logs = job_cluster.ask("logs", job_id)
    assert logs.returncode == 0
    assert "step 2/2" in logs.stdout
    assert logs.stdout.strip() in done.stdout


@pytest.mark.slow
def test_a_followed_job_outlives_ctrl_c_and_ends_when_it_is_stopped(job_cluster: JobCluster, tmp_path: Path) -> None:
    typed = overrides_for(tmp_path, name="long", steps=100_000)
    follower = job_cluster.job(*typed)
    lines = []
    while not any("step 1/" in line for line in lines[-1:]):
        lines.append(follower.stdout.readline())
        assert lines[-1], "".join(lines)
    follower.send_signal(signal.SIGINT)
    output, _ = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert "Traceback" not in output
    job_id = re.search(r"submit stop (long-\S+)", output).group(1)

    second = job_cluster.ask(*typed)
    assert second.returncode == 2
    assert f"job {job_id} is writing {tmp_path}/long" in second.stdout

    stopped = job_cluster.ask("stop", job_id)
    assert stopped.returncode == 0
    assert f"job {job_id} is STOPPED" in stopped.stdout
    told = job_cluster.ask("logs", job_id).stdout
    step = re.search(r"stopped by SIGTERM after step (\d+)", told).group(1)
    assert (tmp_path / "long" / "checkpoints" / f"step_{int(step):06d}" / "manifest.json").exists()
    assert "STOPPED already" in job_cluster.ask("stop", job_id).stdout
    assert job_cluster.ask("follow", job_id).returncode == 1
