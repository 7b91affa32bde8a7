"""Who judges a run's responses: the reward workers, and the language model that reward functions may ask."""

from __future__ import annotations

from collections.abc import Sequence

import ray

from rewards.spec import RewardSpec
from workers.canary import Canary
from workers.config import TeamConfig
from workers.group import Hosting, RewardGroup
from workers.judge_endpoint import KEY_ENV, with_endpoint
from workers.judge_group import JudgeServerGroup
from workers.judge_server import JudgeServer, JudgeServerSetup
from workers.reward_model_judge import RewardModelJudge, reward_model_judge_setup
from workers.reward_worker import RewardWorker


def make_judge_server(team: TeamConfig, hosting: Hosting) -> JudgeServerGroup:
    """Empty unless a function asks a judge of the run's own."""
    setup = JudgeServerSetup(
        judge=team.reward.judge,
        device=team.cluster.device,
        seed=team.seed,
        only_here=sum(node["Alive"] for node in ray.nodes()) == 1,
    )
    return JudgeServerGroup(
        JudgeServer,
        hosting,
        role="judge",
        arguments=[(setup,)] * sum(place.role == "judge" for place in hosting.places),
    )


def make_judges(
    team: TeamConfig,
    rewards: Sequence[RewardSpec],
    canaries: Sequence[Canary],
    judge: JudgeServerGroup,
    hosting: Hosting,
) -> RewardGroup:
    """`judge`: is up by now, for its endpoint goes into the functions' arguments."""
    secrets: dict[str, str] = {}
    if len(judge):
        endpoint = judge.endpoint()
        rewards, secrets = with_endpoint(rewards, endpoint), {KEY_ENV: endpoint.key}
    config, judges = team.reward, team.reward.workers if team.rollout_workers else 0
    budget = team.train.tokens_per_micro_batch
    setup = reward_model_judge_setup(team.model, config, team.cluster.device, tokens_per_micro_batch=budget)
    return RewardGroup(
        RewardModelJudge if config.model else RewardWorker,
        hosting,
        role="reward",
        arguments=[(rewards, canaries, setup if config.model else config)] * judges,
        secrets=secrets,
        concurrency=config.processes + 1,
        restarts=team.cluster.worker_restarts,
    )
