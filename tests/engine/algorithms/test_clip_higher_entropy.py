"""What a higher ceiling does to entropy (DAPO, 2503.14476, section 3.1), where a table learns by GRPO's own loss.

The policy is a row of logits a state, a response is one token, and its reward follows a fixed rule. Under a ceiling
unlikely tokens have less room than the likely one. Where they are as right or better, that costs entropy, as the paper
says; where one token alone is right, it delays the certainty that comes with knowing it. Suffixes: `S` states, `V`
tokens of the vocabulary, `B` responses of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from loss_rows import Rows, loss_of, rows_of, step_advantages
from torch import Tensor

from engine.algorithms.dapo import DAPO
from engine.algorithms.grpo import GRPO
from tests.one_thread import one_thread  # noqa: F401  a fixture

UPDATES, EPOCHS, GROUP = 4, 2, 8
"""Each step samples one group of every state for each of its updates, and makes all its updates in each epoch."""
PLAIN = GRPO(kl_coef=0.0)
HIGHER = replace(PLAIN, clip_high=DAPO().clip_high)
every_seed = pytest.mark.parametrize("seed", [0, 1, 2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The first token is the likely one; all others share what is left. The same in every state."""

    vocabulary: int = 32
    likely: float
    """Probability of the first token at the start."""
    right: tuple[float, float]
    """How often a response is right that is the first token; that is another."""
    steps: int
    states: int = 16
    learning_rate: float = 10.0
    """A response that is one of an update's 16 * 8 moves its token's logit by 10 / 128 of its advantage."""

    def of_each(self, first: float, other: float) -> Tensor:
        """[V]"""
        return torch.tensor([first] + [other] * (self.vocabulary - 1), dtype=torch.float64)

    def start(self) -> Tensor:
        """[S, V] logits."""
        return self.of_each(self.likely, (1 - self.likely) / (self.vocabulary - 1)).log().repeat(self.states, 1)


AS_RIGHT = Task(likely=0.9, right=(0.5, 0.5), steps=25)
"""The paper's likely token (0.9), and 31 that are as right: what decides comes later in a response, and is a coin."""
BETTER = Task(likely=0.9, right=(0.5, 0.6), steps=10)
ONE_RIGHT = Task(likely=0.1, right=(1.0, 0.0), steps=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    entropy_S: Tensor
    """Nats, at the end."""
    reward_S: Tensor
    """Expected, at the end."""
    stopped: Tensor
    """How likely each token was when it was sampled that the ceiling stopped, once for each update that it missed."""
    praised: Tensor
    """The same of every token with an advantage above 0, stopped or not."""


@cache
def learned(algorithm: GRPO, task: Task, *, seed: int) -> Learned:
    logits_SV = task.start().requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    blank, stopped, praised = _blank(task), [], []
    for _ in range(task.steps):
        token_B, rows = _sampled(algorithm, task, logits_SV.detach().log_softmax(dim=-1), blank, generator)
        for update in _updates(task) * EPOCHS:
            own = replace(rows.at(update), new_BT=_logprobs(logits_SV.log_softmax(dim=-1), token_B[update]))
            [gradient_SV] = torch.autograd.grad(loss_of(algorithm, own, own.totals()).value, logits_SV)
            _descend(logits_SV, gradient_SV, task)
            flag_BT = algorithm.token_loss(own.policy(), own.experience()).metrics_BT["clip_high"]
            stopped.append(own.old_BT[flag_BT > 0].exp())
            praised.append(own.old_BT[own.advantages_BT > 0].exp())
    p_SV = logits_SV.detach().softmax(dim=-1)
    return Learned(
        entropy_S=torch.special.entr(p_SV).sum(dim=-1),
        reward_S=p_SV @ task.of_each(*task.right),
        stopped=torch.cat(stopped),
        praised=torch.cat(praised),
    )


def _descend(logits_SV: Tensor, gradient_SV: Tensor, task: Task) -> None:
    """Plainly: under Adam, which makes all logits' steps about equally long, the sign depends on rate and seed."""
    with torch.no_grad():
        logits_SV.sub_(gradient_SV, alpha=task.learning_rate)


def _updates(task: Task) -> list[Sequence[int]]:
    """The rows of each update: whole groups, one of each state."""
    size = task.states * GROUP
    return [range(first, first + size) for first in range(0, UPDATES * size, size)]


def _blank(task: Task) -> Rows:
    size = UPDATES * task.states * GROUP
    return rows_of(torch.ones(size, 1, dtype=torch.bool), prompt_B=torch.arange(size) // GROUP)


def _sampled(
    algorithm: GRPO, task: Task, logprobs_SV: Tensor, blank: Rows, generator: torch.Generator
) -> tuple[Tensor, Rows]:
    """[B] tokens, update by update, and their rows with rewards and the advantages that follow."""
    drawn = torch.multinomial(logprobs_SV.exp(), UPDATES * GROUP, replacement=True, generator=generator)
    token_B = drawn.view(task.states, UPDATES, GROUP).transpose(0, 1).flatten()
    old_BT = _logprobs(logprobs_SV, token_B)
    reward_B = torch.bernoulli(task.of_each(*task.right)[token_B], generator=generator)
    rows = replace(blank, new_BT=old_BT, old_BT=old_BT, rollout_BT=old_BT, reward_B=reward_B)
    return token_B, replace(rows, advantages_BT=step_advantages(algorithm, rows))


def _logprobs(logprobs_SV: Tensor, token_B: Tensor) -> Tensor:
    """[B, 1] of responses that are whole updates."""
    state_B = torch.arange(len(token_B)) // GROUP % len(logprobs_SV)
    return logprobs_SV[state_B, token_B].unsqueeze(-1)


def entropies(task: Task, *, seed: int) -> tuple[float, float]:
    """Under the plain ceiling, and under the higher one."""
    plain, higher = (learned(algorithm, task, seed=seed).entropy_S.mean().item() for algorithm in (PLAIN, HIGHER))
    return plain, higher


def reward(algorithm: GRPO, task: Task, *, seed: int) -> float:
    return learned(algorithm, task, seed=seed).reward_S.mean().item()


@every_seed
def test_where_unlikely_tokens_are_as_right_a_higher_ceiling_keeps_more_entropy(seed: int) -> None:
    plain, higher = entropies(AS_RIGHT, seed=seed)
    assert higher > plain + 0.05


@every_seed
def test_where_unlikely_tokens_are_better_a_higher_ceiling_keeps_more_entropy_and_finds_more_reward(seed: int) -> None:
    plain, higher = entropies(BETTER, seed=seed)
    assert higher > plain + 0.05
    assert reward(HIGHER, BETTER, seed=seed) > reward(PLAIN, BETTER, seed=seed)


@every_seed
def test_the_ceiling_stops_unlikely_tokens(seed: int) -> None:
    """As the paper's figure 3a: they are less than 0.2 likely, when most of what is praised is the likely token."""
    plain = learned(PLAIN, AS_RIGHT, seed=seed)
    assert len(plain.stopped) > 0.01 * len(plain.praised)
    assert plain.stopped.mean() < 0.05
    assert (plain.stopped < 0.2).double().mean() > 0.9
    assert plain.praised.mean() > 0.7
    assert (plain.praised < 0.2).double().mean() < 0.2


@every_seed
def test_where_one_token_is_right_a_higher_ceiling_leaves_less_entropy_and_more_reward(seed: int) -> None:
    plain, higher = entropies(ONE_RIGHT, seed=seed)
    assert higher < plain - 0.02
    assert reward(HIGHER, ONE_RIGHT, seed=seed) > reward(PLAIN, ONE_RIGHT, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", [5.0, 20.0])
@pytest.mark.parametrize("vocabulary", [16, 64])
@pytest.mark.parametrize("likely", [0.5, 0.7, 0.9])
def test_neither_sign_is_that_of_one_setting(likely: float, vocabulary: int, learning_rate: float) -> None:
    """In the mean over seeds."""
    as_right = replace(AS_RIGHT, likely=likely, vocabulary=vocabulary, learning_rate=learning_rate)
    one_right = replace(ONE_RIGHT, likely=1 - likely, vocabulary=vocabulary, learning_rate=learning_rate)
    for task, sign in ((as_right, 1), (one_right, -1)):
        differences = [higher - plain for plain, higher in (entropies(task, seed=seed) for seed in (0, 1, 2))]
        assert sign * sum(differences) > 0
