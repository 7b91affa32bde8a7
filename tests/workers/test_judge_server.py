"""A judge of the run's own: who has its key is answered, and nothing of it outlives who started it.

The fast tests start `fake_judge_server` in place of vLLM's; the slow one is about the real thing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from asked import item

from engine.judging import reward_specs
from rewards.score import Failure, FailureKind, Judgement, Score
from workers import judge_server
from workers.config import Device, FunctionConfig, JudgeConfig, Precision, RewardConfig
from workers.judge_endpoint import KEY_ENV, JudgeEndpoint, waits_for_judge, with_endpoint
from workers.judge_server import JudgeCannotAnswer, JudgeDied, JudgeServer, JudgeServerSetup
from workers.processes import descendants_of
from workers.reward_pool import RewardPool
from workers.reward_worker import limits_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OWNER = """
import json, sys, time
from workers import judge_server
from workers.config import Device, JudgeConfig, Precision
from workers.processes import descendants_of

judge_server.SERVER, judge = sys.argv[1], json.loads(sys.argv[2])
setup = judge_server.JudgeServerSetup(
    judge=JudgeConfig(**{**judge, "precision": Precision(judge["precision"])}),
    device=Device.CPU, seed=0, only_here=True,
)
endpoint = judge_server.JudgeServer(setup).endpoint()
processes = sorted(descendants_of(__import__("os").getpid()))
told = {"url": endpoint.url, "model": endpoint.model, "key": endpoint.key, "processes": processes}
print(json.dumps(told), file=sys.stderr, flush=True)
time.sleep(600)
"""
"""A process that starts a judge, tells where it is, and does nothing more."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], JudgeServer]:
    """Starts the stand-in, under the name of a model."""
    monkeypatch.setattr(judge_server, "SERVER", "fake_judge_server")
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    return lambda name: JudgeServer(setup_of(JudgeConfig(model=f"organisation/{name}")))


def setup_of(judge: JudgeConfig) -> JudgeServerSetup:
    return JudgeServerSetup(judge=judge, device=Device.CPU, seed=0, only_here=True)


def judged_by(endpoint: JudgeEndpoint, config: RewardConfig, response: str) -> Judgement:
    """By a process of a reward worker, as a run has it."""
    waiting = reward_specs(config)
    assert all(waits_for_judge(spec) for spec in waiting)
    with closing(RewardPool(with_endpoint(waiting, endpoint), limits_of(config), processes=1)) as pool:
        [judgement] = pool.judge(0, [item(response)]).result()
    return judgement


def config_of(judge: JudgeConfig, **arguments: object) -> RewardConfig:
    taste = FunctionConfig(function="rewards.judge:rubric", arguments={"retries": 0, **arguments})
    return RewardConfig(functions={"taste": taste}, judge=judge, timeout_s=60.0)


def are_gone(processes: set[int]) -> bool:
    """Whether all of them end within a few seconds."""
    deadline = time.monotonic() + 10.0
    while any(map(is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_alive, processes))


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def shown_by_ps(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_text()


# ----------------------------------------------------------------------------- with the stand-in


def test_a_function_without_a_url_asks_the_judge_with_its_key(
    fake: Callable[[str], JudgeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = JudgeConfig(model="organisation/kind", max_reply_tokens=99)
    with closing(fake("kind")) as server:
        endpoint = server.endpoint()
        assert endpoint.url.startswith("http://127.0.0.1:") and endpoint.model == "kind" and len(endpoint.key) > 40
        assert endpoint.key not in repr(endpoint)
        monkeypatch.setenv(KEY_ENV, endpoint.key)
        given = judged_by(endpoint, config_of(judge), "46")
        own_limit = judged_by(endpoint, config_of(judge, max_tokens=5), "46")
        monkeypatch.setenv(KEY_ENV, "another")
        refused = judged_by(endpoint, config_of(judge), "46")
    assert given == Score(total=0.7, parts={"agreement": 1.0, "votes": 1.0})
    assert isinstance(own_limit, Failure) and own_limit.kind is FailureKind.UNREADABLE
    assert isinstance(refused, Failure) and refused.kind is FailureKind.UNAVAILABLE and "401" in refused.reason


def test_its_key_is_on_no_command_line_and_is_another_one_each_time(fake: Callable[[str], JudgeServer]) -> None:
    keys = set()
    for _ in range(2):
        with closing(fake("kind")) as server:
            keys.add(server.endpoint().key)
            shown = [shown_by_ps(process) for process in descendants_of(os.getpid())]
        assert any("fake_judge_server" in line for line in shown)
        assert not any(key in line for key in keys for line in shown)
    assert len(keys) == 2


def test_where_a_cluster_has_more_machines_it_listens_at_its_own_address_alone(
    fake: Callable[[str], JudgeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.util

    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.2")
    setup = replace(setup_of(JudgeConfig(model="organisation/kind")), only_here=False)
    with closing(JudgeServer(setup)) as server:
        address, _, port = server.endpoint().url.removesuffix("/v1").removeprefix("http://").partition(":")
        assert address == "127.0.0.2"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)


def test_nothing_is_left_after_it_is_closed(fake: Callable[[str], JudgeServer]) -> None:
    before = descendants_of(os.getpid())
    server = fake("kind")
    processes = descendants_of(os.getpid()) - before
    assert len(processes) >= 2
    server.check()
    server.close()
    server.close()
    assert are_gone(processes)


def test_nothing_is_left_after_its_owner_is_killed() -> None:
    with owner("fake_judge_server", JudgeConfig(model="organisation/kind")) as (process, told):
        assert len(told["processes"]) >= 2 and all(map(is_alive, told["processes"]))
        process.kill()
        assert are_gone(set(told["processes"]))


def test_a_server_that_dies_is_told_and_its_own_processes_die_with_it(fake: Callable[[str], JudgeServer]) -> None:
    before = descendants_of(os.getpid())
    with closing(fake("kind")) as server:
        processes = descendants_of(os.getpid()) - before
        [leader] = [process for process in processes if "--served-model-name" in shown_by_ps(process)]
        os.kill(leader, signal.SIGKILL)
        with pytest.raises(JudgeDied, match=r"organisation/kind cannot be asked any more: .* killed by SIGKILL"):
            server.check()
        assert are_gone(processes)


def test_one_that_cannot_start_or_takes_no_questions_is_told_with_its_own_words(
    fake: Callable[[str], JudgeServer],
) -> None:
    with pytest.raises(JudgeDied, match="it exited with code 3"):
        fake("exits")
    with pytest.raises(JudgeCannotAnswer, match=r"cannot be asked: .*no chat template.*status 400"):
        fake("refuses")


@contextmanager
def owner(server: str, judge: JudgeConfig) -> Iterator[tuple[subprocess.Popen, dict]]:
    settings = json.dumps({**vars(judge), "precision": judge.precision.value})
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, server, settings],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}", "OMP_NUM_THREADS": "1"},
    )
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if line.startswith('{"url"'):
                yield process, json.loads(line)
                return
        raise AssertionError("".join(lines))
    finally:
        process.kill()
        process.wait()


# ----------------------------------------------------------------------------- with vLLM


@pytest.mark.slow
def test_vllm_answers_who_has_the_key_and_leaves_nothing_behind(
    judge_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tiny model with random weights, whose replies hold no verdict: that is a failure, and no zero."""
    judge = JudgeConfig(
        model=str(judge_model),
        precision=Precision.FLOAT32,
        context_length=4096,
        max_reply_tokens=16,
        kv_cache_gib=0.0625,
    )
    with owner(judge_server.SERVER, judge) as (process, told):
        root = told["url"].removesuffix("/v1")
        paths = ("/v1/models", "/v1/chat/completions", "/invocations", "/health", "/metrics", "/tokenize", "/")
        for path in paths:
            assert httpx.get(f"{root}{path}", trust_env=False).status_code == 401, path
            assert httpx.post(f"{root}{path}", json={}, trust_env=False).status_code == 401, path
        with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {told['key']}"}) as client:
            [served] = client.get(f"{root}/v1/models").json()["data"]
            question = {"model": "nano-judge", "messages": [{"role": "user", "content": "12+34="}], "max_tokens": 5}
            reply = client.post(f"{root}/v1/chat/completions", json=question).json()
        assert (served["id"], served["max_model_len"]) == ("nano-judge", 4096)
        assert reply["choices"][0]["message"]["role"] == "assistant" and reply["usage"]["completion_tokens"] <= 5
        monkeypatch.setenv(KEY_ENV, told["key"])
        endpoint = JudgeEndpoint(url=told["url"], model=told["model"], key=told["key"])
        failed = judged_by(endpoint, config_of(judge, votes=2), "46")
        assert isinstance(failed, Failure) and failed.kind is FailureKind.UNREADABLE, failed
        assert not any(told["key"] in shown_by_ps(one) for one in told["processes"])
        process.kill()
        assert are_gone(set(told["processes"]))
