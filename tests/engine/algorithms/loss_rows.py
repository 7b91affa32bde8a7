"""Small batches for the loss tests, in float64, and what an algorithm makes of them.

Suffixes: `B` responses, `T` token positions of a response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from engine.algorithms.base import Algorithm, Outcomes
from engine.experience import Assignment, advantages
from workers.records import Batch, Credit, Experience, Loss, Metrics, ModelOutputs, TokenLogprobs, Totals
from workers.whitening import whitened

PER_RESPONSE = ("advantage_B", "reward_B", "prompt_B", "prompt_tokens_B")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What an algorithm reads of responses, as plain tensors that a test may cut, permute, pad and spoil."""

    mask_BT: Tensor
    new_BT: Tensor
    """Log-probs of the policy that learns; then of that at the start of the step, the engine, the reference."""
    old_BT: Tensor
    rollout_BT: Tensor
    reference_BT: Tensor
    entropy_BT: Tensor
    values_BT: Tensor
    """Of the critic that learns; then of that at the start of the step."""
    old_values_BT: Tensor
    advantages_BT: Tensor
    """Credit as it is given to the loss, where a test does not let the algorithm give it."""
    returns_BT: Tensor
    advantage_B: Tensor
    reward_B: Tensor
    prompt_B: Tensor
    prompt_tokens_B: Tensor
    """Action tokens of all responses to the same prompt, wherever they are."""

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.__slots__}

    def at(self, rows: Sequence[int]) -> Rows:
        index = torch.tensor(rows, dtype=torch.long)
        return Rows(**{name: tensor[index] for name, tensor in self.tensors().items()})

    def padded(self, width: int, value: float) -> Rows:
        """`width` more columns of `value`, masked."""
        per_token = {name: tensor for name, tensor in self.tensors().items() if name not in PER_RESPONSE}
        wider = {name: pad(tensor, (0, width), value=value) for name, tensor in per_token.items()}
        return replace(self, **(wider | {"mask_BT": pad(self.mask_BT, (0, width), value=False)}))

    def spoiled(self, value: float) -> Rows:
        """`value` wherever there is no action token; a response without any has no reward either."""
        per_token = {
            name: tensor.masked_fill(~self.mask_BT, value)
            for name, tensor in self.tensors().items()
            if name not in PER_RESPONSE
        }
        empty_B = ~self.mask_BT.any(dim=-1)
        per_response = {name: getattr(self, name).masked_fill(empty_B, value) for name in ("advantage_B", "reward_B")}
        return replace(self, **(per_token | per_response | {"mask_BT": self.mask_BT}))

    def without_gaps(self) -> Rows:
        """Action tokens alone, from the left: what a tool wrote in between is gone."""
        order_BT = self.mask_BT.int().argsort(dim=-1, descending=True, stable=True)
        per_token = {name: tensor for name, tensor in self.tensors().items() if name not in PER_RESPONSE}
        return replace(self, **{name: tensor.gather(1, order_BT) for name, tensor in per_token.items()})

    def with_an_empty_row(self) -> Rows:
        """One more row, which belongs to a prompt of its own and has no action token."""
        more = self.at([*range(len(self.mask_BT)), 0])
        mask_BT, prompt_B, prompt_tokens_B = more.mask_BT.clone(), more.prompt_B.clone(), more.prompt_tokens_B.clone()
        mask_BT[-1], prompt_B[-1], prompt_tokens_B[-1] = False, int(self.prompt_B.max()) + 1, 0
        return replace(more, mask_BT=mask_BT, prompt_B=prompt_B, prompt_tokens_B=prompt_tokens_B)

    def batch(self) -> Batch:
        size, width = self.mask_BT.shape
        return Batch(
            context=tuple(torch.zeros(2 + width, dtype=torch.long) for _ in range(size)),
            prompt_lengths=(2,) * size,
            prompts=tuple(range(size)),
            token_ids_BT=torch.zeros(size, width, dtype=torch.long),
            mask_BT=self.mask_BT,
            rollout_logprobs_BT=self.rollout_BT,
            version_BT=torch.zeros(size, width, dtype=torch.long),
            reward_B=self.reward_B,
            prompt_tokens_B=self.prompt_tokens_B,
        )

    def policy(self) -> TokenLogprobs:
        return TokenLogprobs(logprobs_BT=self.new_BT, entropy_BT=self.entropy_BT)

    def outputs(self) -> ModelOutputs:
        return ModelOutputs(
            tensors={
                "old_logprobs_BT": self.old_BT,
                "reference_logprobs_BT": self.reference_BT,
                "values_BT": self.old_values_BT,
            }
        )

    def experience(self) -> Experience:
        credit = Credit(advantages_BT=self.advantages_BT, returns_BT=self.returns_BT)
        return Experience(batch=self.batch(), outputs=self.outputs(), credit=credit)

    def totals(self, *, horizon: int = 8) -> Totals:
        return Totals(
            tokens=int(self.mask_BT.sum()),
            sequences=int(self.mask_BT.any(dim=-1).sum()),
            prompts=len(self.prompt_B[self.mask_BT.any(dim=-1)].unique()),
            horizon=horizon,
        )


def rows_of(mask_BT: Tensor, **given: Tensor) -> Rows:
    """Rows of one prompt in which everything that is not given is 0 and agrees with the policy at the step's start."""
    zeros_BT, zeros_B = torch.zeros(mask_BT.shape, dtype=torch.float64), torch.zeros(len(mask_BT), dtype=torch.float64)
    old_BT = given.get("old_BT", zeros_BT)
    prompt_B = given.get("prompt_B", torch.zeros(len(mask_BT), dtype=torch.long))
    length_B = mask_BT.sum(dim=-1)
    fields = {
        "new_BT": old_BT,
        "old_BT": old_BT,
        "rollout_BT": old_BT,
        "reference_BT": old_BT,
        "entropy_BT": zeros_BT,
        "values_BT": zeros_BT,
        "old_values_BT": zeros_BT,
        "advantages_BT": zeros_BT,
        "returns_BT": zeros_BT,
        "advantage_B": zeros_B,
        "reward_B": zeros_B,
        "prompt_B": prompt_B,
        "prompt_tokens_B": torch.stack([length_B[prompt_B == prompt].sum() for prompt in prompt_B]),
    }
    return Rows(mask_BT=mask_BT, **(fields | given))


def golden_rows(new: list[list[float]], **given: Tensor) -> Rows:
    """Two responses of 3 and 2 tokens with advantages +1 and -1; the last position of the second is padding."""
    return rows_of(
        torch.tensor([[True, True, True], [True, True, False]]),
        new_BT=doubles(new),
        old_BT=doubles([[-1.0, -2.0, -0.5], [-0.3, -1.2, -4.0]]),
        advantages_BT=doubles([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]),
        entropy_BT=doubles([[1.0, 2.0, 3.0], [4.0, 5.0, 100.0]]),
        **given,
    )


def outcomes(score: Sequence[float], group: Sequence[int], *, greedy: Sequence[float] | None = None) -> Outcomes:
    return Outcomes(
        score_B=np.array(score, dtype=np.float64),
        greedy_B=np.full(len(score), np.nan) if greedy is None else np.array(greedy, dtype=np.float64),
        length_B=np.full(len(score), 3, dtype=np.int64),
        group_B=np.array(group, dtype=np.int64),
    )


def doubles(values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_near(
    actual: Tensor, golden: Sequence[float] | Sequence[Sequence[float]], mask: Tensor | None = None
) -> None:
    """Golden numbers are rounded to six digits."""
    expected = doubles(golden)
    chosen = torch.ones_like(expected, dtype=torch.bool) if mask is None else mask
    torch.testing.assert_close(actual[chosen].double(), expected[chosen], rtol=0, atol=2e-6)


# ----------------------------------------------------------------------------- what an algorithm makes of rows


def loss_of(algorithm: Algorithm, rows: Rows, totals: Totals) -> Loss:
    """With the credit that stands in the rows."""
    return algorithm.policy_loss(rows.policy(), rows.experience(), totals, algorithm.initial_state())


def figures(loss: Loss) -> dict[str, float]:
    return {"value": loss.value.item()} | {name: metric.item() for name, metric in loss.metrics.items()}


def gradient(value_of: Callable[[Rows], Tensor], rows: Rows, name: str = "new_BT") -> Tensor:
    """Of a scalar with respect to one tensor of the rows; zeros where it does not depend on it."""
    leaf = getattr(rows, name).clone().requires_grad_()
    value = value_of(replace(rows, **{name: leaf}))
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    [found] = torch.autograd.grad(value, leaf, allow_unused=True)
    return torch.zeros_like(leaf) if found is None else found


def loss_gradient(algorithm: Algorithm, rows: Rows, totals: Totals, name: str = "new_BT") -> Tensor:
    return gradient(lambda own: loss_of(algorithm, own, totals).value, rows, name)


def credited(algorithm: Algorithm, rows: Rows) -> Credit:
    """Who gets the blame, by the algorithm's own rule, for the advantages that stand in the rows."""
    return algorithm.token_credit(rows.batch(), rows.outputs(), rows.advantage_B, algorithm.initial_state())


def judged(algorithm: Algorithm, rows: Rows, *, greedy: Sequence[float] | None = None) -> tuple[Tensor, Metrics]:
    """[B] what each response is worth, and figures of it, as the driver finds it for rows that two ranks own."""
    outcomes_B = outcomes(rows.reward_B.tolist(), rows.prompt_B.tolist(), greedy=greedy)
    outcomes_B = replace(outcomes_B, length_B=rows.mask_BT.sum(dim=-1).numpy())
    places = tuple(np.array_split(np.arange(len(rows.reward_B))[::-1], 2))
    divergence_B = algorithm.divergence(rows.batch(), rows.outputs()).sum(dim=-1).numpy()
    own, metrics = advantages(
        Assignment(shares=(), groups=(), outcomes=outcomes_B, places=places),
        algorithm,
        algorithm.initial_state(),
        divergence=[divergence_B[rows_of_rank] for rows_of_rank in places],
    )
    advantage_B = np.empty(len(rows.reward_B))
    advantage_B[np.concatenate(places)] = np.concatenate(own)
    return torch.from_numpy(advantage_B), metrics


def step_advantages(algorithm: Algorithm, rows: Rows, *, greedy: Sequence[float] | None = None) -> Tensor:
    """[B, T] the advantages that a step learns from: judged, credited, whitened."""
    advantage_B, _ = judged(algorithm, rows, greedy=greedy)
    advantages_BT = credited(algorithm, replace(rows, advantage_B=advantage_B)).advantages_BT
    if not algorithm.whiten:
        return advantages_BT
    return whitened(advantages_BT, rows.mask_BT, ddof=algorithm.whiten_ddof, all_reduce=lambda total: total)
