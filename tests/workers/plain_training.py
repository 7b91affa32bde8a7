"""The independent reference: full batches through plain transformers, one row at a time, and PyTorch's own AdamW.

Nothing here knows of micro-batches, ranks or DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tiny
import torch
from tiny import count, made_up, outcomes_of, rollout_of, toy_groups
from trainers import UpdateRows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from engine.algorithms.base import Algorithm
from workers.batches import collate
from workers.records import Experience, ModelOutputs, Row, TokenLogprobs, Totals
from workers.tally import UpdateReport
from workers.train_worker import TrainerSetup

Said = Mapping[Row, torch.Tensor]
"""What a model says of each row's response tokens."""
UpdateLoss = Callable[[Sequence[Row], Said, Said, Totals], torch.Tensor]
"""Of the rows of one update, their log-probs, their entropies, and the update's totals."""
Teacher = Callable[[Sequence[Row], Said], UpdateLoss]
"""From all rows of a lesson, and what the policy said of them before its first update."""


@dataclass(frozen=True)
class Plain:
    weights: dict[str, torch.Tensor]
    losses: list[float]
    norms: list[float]


def action_mask(row: Row) -> torch.Tensor:
    return torch.from_numpy(rollout_of(row, toy_groups()).action_mask())


def context_of(row: Row) -> tuple[torch.Tensor, int]:
    rollout = rollout_of(row, toy_groups())
    prompt = rollout.prompt.token_ids
    return torch.tensor([[*prompt, *rollout.token_ids.tolist()]]), len(prompt)


def alone(model: torch.nn.Module, row: Row, temperature: float) -> torch.Tensor:
    """What the plain model says of a row's action tokens."""
    rollout = rollout_of(row, toy_groups())
    prompt = rollout.prompt.token_ids
    said = tiny.plain_logprobs(model, [*prompt, *rollout.token_ids.tolist()], len(prompt), temperature)
    return said.detach()[torch.from_numpy(rollout.action_mask())]


def plain_policy(
    setup: TrainerSetup,
    lessons: Sequence[UpdateRows],
    teacher: Teacher,
    *,
    temperature: float,
    dtype: torch.dtype = torch.float32,
) -> Plain:
    model = AutoModelForCausalLM.from_pretrained(setup.model.path, dtype=dtype)

    def said(row: Row) -> tuple[torch.Tensor, torch.Tensor]:
        tokens_1S, prompt = context_of(row)
        logits_TV = model(input_ids=tokens_1S).logits[0, prompt - 1 : -1] / temperature
        entropy_T = torch.distributions.Categorical(logits=logits_TV).entropy()
        return logits_TV.log_softmax(-1)[torch.arange(len(logits_TV)), tokens_1S[0, prompt:]], entropy_T

    def lesson_loss(rows: Sequence[Row]) -> Callable[[Sequence[Row], Totals], torch.Tensor]:
        update_loss = teacher(rows, {row: said(row)[0].detach() for row in rows})

        def loss(own: Sequence[Row], totals: Totals) -> torch.Tensor:
            both = {row: said(row) for row in own}
            return update_loss(own, {row: b[0] for row, b in both.items()}, {r: b[1] for r, b in both.items()}, totals)

        return loss

    return _adamw(model, setup, lessons, lesson_loss)


def plain_critic(setup: TrainerSetup, lessons: Sequence[UpdateRows], *, value_clip: float) -> Plain:
    """Half the squared error of the clipped value where that is worse, averaged over tokens."""
    model = AutoModelForSequenceClassification.from_pretrained(setup.model.path, num_labels=1, dtype=torch.float32)
    if not tiny.is_reward_model(setup.model.path):
        torch.nn.init.zeros_(model.score.weight)

    def values(row: Row) -> torch.Tensor:
        """Of each action token: the head on the hidden state that precedes it."""
        tokens_1S, prompt = context_of(row)
        hidden_SH = model.model(input_ids=tokens_1S).last_hidden_state[0]
        return model.score(hidden_SH[prompt - 1 : -1])[action_mask(row), 0]

    def lesson_loss(rows: Sequence[Row]) -> Callable[[Sequence[Row], Totals], torch.Tensor]:
        old = {row: values(row).detach() for row in rows}

        def loss(own: Sequence[Row], totals: Totals) -> torch.Tensor:
            errors = []
            for row in own:
                if not action_mask(row).any():
                    continue
                new, positions = values(row), action_mask(row).nonzero().flatten().tolist()
                wanted = torch.tensor([tiny.return_of(row, at) for at in positions], dtype=torch.float32)
                held = old[row] + (new - old[row]).clamp(-value_clip, value_clip)
                errors.append(torch.max((new - wanted) ** 2, (held - wanted) ** 2).sum())
            return 0.5 * torch.stack(errors).sum() / totals.tokens

        return loss

    return _adamw(model, setup, lessons, lesson_loss)


def _adamw(
    model: PreTrainedModel,
    setup: TrainerSetup,
    lessons: Sequence[UpdateRows],
    lesson_loss: Callable[[Sequence[Row]], Callable[[Sequence[Row], Totals], torch.Tensor]],
) -> Plain:
    config, losses, norms = setup.train, [], []
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, config.betas, config.eps, config.weight_decay
    )
    for lesson in lessons:
        loss_of = lesson_loss([row for rows in lesson for row in rows])
        for rows in lesson * config.epochs_per_step:
            optimizer.zero_grad()
            loss = loss_of(rows, count(rows, toy_groups()))
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm).item())
            optimizer.step()
            losses.append(loss.item())
    return Plain(weights={n: p.detach() for n, p in model.named_parameters()}, losses=losses, norms=norms)


# ----------------------------------------------------------------------------- comparing


def summed(reports: Sequence[UpdateReport], name: str) -> float:
    """A step's figure, from what all ranks report."""
    return sum(report.contributions.get(name, 0.0) for report in reports)


def distance(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The largest difference between two sets of weights."""
    assert list(one) == list(other)
    return max((one[name].float() - other[name].float()).abs().max().item() for name in one)


def same_bits(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


# ----------------------------------------------------------------------------- what is learned


def grpo_by_hand(kl_coef: float) -> Teacher:
    """A mean over rows of means over tokens; corrected for the rollout engine's log-probs, held near the reference."""

    def teach(rows: Sequence[Row], old: Said) -> UpdateLoss:
        rewards = {draw: np.array([row.reward for row in rows if row.draw == draw]) for draw in {r.draw for r in rows}}
        worth = {row: (row.reward - rewards[row.draw].mean()) / (rewards[row.draw].std(ddof=1) + 1e-6) for row in rows}

        def loss(own: Sequence[Row], new: Said, entropy: Said, totals: Totals) -> torch.Tensor:
            # A response without a token of its own has no mean.
            taught = [row for row in own if action_mask(row).any()]
            return sum(token_losses(row, new[row], old[row]).mean() for row in taught) / totals.sequences

        def token_losses(row: Row, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
            mask = action_mask(row)
            new, old = new[mask], old[mask]
            sampled = torch.from_numpy(rollout_of(row, toy_groups()).logprobs)[mask]
            ratio = torch.exp(new - old)
            surrogate = torch.min(worth[row] * ratio, worth[row] * ratio.clamp(0.8, 1.2))
            positions = mask.nonzero().flatten().tolist()
            reference = torch.tensor([tiny.reference_logprob(row, at) for at in positions], dtype=torch.float32)
            k3 = torch.exp(reference - new) - (reference - new) - 1
            return -surrogate * torch.exp(old - sampled).clamp(max=2.0) + kl_coef * k3

        return loss

    return teach


def sft_by_hand(rows: Sequence[Row], old: Said) -> UpdateLoss:
    def loss(own: Sequence[Row], new: Said, entropy: Said, totals: Totals) -> torch.Tensor:
        return -sum(new[row][action_mask(row)].sum() for row in own) / totals.tokens

    return loss


def by_its_own_loss(algorithm: Algorithm) -> Teacher:
    """The algorithm's formulas on the whole batch at once; whitened by hand, over all rows."""
    groups, state = toy_groups(), algorithm.initial_state()

    def teach(rows: Sequence[Row], old: Said) -> UpdateLoss:
        batch = collate(rows, groups)

        def padded(said: Said) -> torch.Tensor:
            whole_BT = torch.zeros(batch.mask_BT.shape, dtype=next(iter(said.values())).dtype)
            for number, row in enumerate(rows):
                if row in said:
                    whole_BT[number, : len(said[row])] = said[row]
            return whole_BT

        outputs = ModelOutputs(
            tensors={
                "old_logprobs_BT": padded(old),
                "reference_logprobs_BT": torch.from_numpy(made_up(tiny.reference_logprob, rows, groups)),
                "values_BT": torch.from_numpy(made_up(tiny.critic_value, rows, groups)),
            }
        )
        outcomes = outcomes_of(rows, groups)
        if not algorithm.credits_tokens:
            divergence_B = algorithm.divergence(batch, outputs).sum(dim=-1).numpy()
            outcomes = replace(outcomes, score_B=outcomes.score_B - state.kl_coef * divergence_B)
        advantage_B = torch.tensor(algorithm.advantage(outcomes), dtype=torch.float32)
        credit = algorithm.token_credit(batch, outputs, advantage_B, state)
        if algorithm.whiten:
            seen = credit.advantages_BT[batch.mask_BT].double()
            white_BT = (credit.advantages_BT - seen.mean()) / (seen.var(correction=algorithm.whiten_ddof) + 1e-8).sqrt()
            credit = replace(credit, advantages_BT=white_BT.float())

        def loss(own: Sequence[Row], new: Said, entropy: Said, totals: Totals) -> torch.Tensor:
            # Rows of other updates have no say.
            is_own_B = torch.tensor([row in own for row in rows])
            of_update = replace(batch, mask_BT=batch.mask_BT & is_own_B[:, None])
            policy = TokenLogprobs(logprobs_BT=padded(new), entropy_BT=padded(entropy))
            past = Experience(batch=of_update, outputs=outputs, credit=credit)
            return algorithm.policy_loss(policy, past, totals, state).value

        return loss

    return teach
