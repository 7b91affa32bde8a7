"""Credit along a response: returns and generalised advantages over the policy's own tokens.

A tool's tokens in the middle of a response are not the policy's actions: what comes after them is carried across
unchanged, no discount is paid for them, and what the critic says of them is not looked at.
Suffixes: `B` responses, `T` token positions (right-padded).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def at_last_action(reward_B: Tensor, mask_BT: Tensor) -> Tensor:
    """[B, T] the outcome's reward on a response's last action token; a response without one gets none."""
    is_last_BT = mask_BT & (mask_BT.cumsum(dim=-1) == mask_BT.sum(dim=-1, keepdim=True))
    return reward_B.unsqueeze(-1).where(is_last_BT, 0.0)


def returns_to_go(reward_BT: Tensor, mask_BT: Tensor, *, gamma: float) -> Tensor:
    """G_t = R_t + gamma G of the next action; 0 at masked positions."""
    return_BT, next_B = reward_BT.new_zeros(reward_BT.shape), reward_BT.new_zeros(len(reward_BT))
    for t in reversed(range(reward_BT.shape[1])):
        next_B = (reward_BT[:, t] + gamma * next_B).where(mask_BT[:, t], next_B)
        return_BT[:, t] = next_B
    return return_BT.masked_fill(~mask_BT, 0.0)


def generalised_advantages(
    reward_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float
) -> Tensor:
    """GAE (1506.02438, Eq. 16) over actions, with value 0 after the last; 0 at masked positions.

    delta_t = R_t + gamma V_next - V_t,    A_t = delta_t + gamma lambda A_next
    """
    advantage_BT = reward_BT.new_zeros(reward_BT.shape)
    next_value_B, next_advantage_B = reward_BT.new_zeros(len(reward_BT)), reward_BT.new_zeros(len(reward_BT))
    for t in reversed(range(reward_BT.shape[1])):
        acts_B = mask_BT[:, t]
        delta_B = reward_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        next_advantage_B = (delta_B + gamma * lam * next_advantage_B).where(acts_B, next_advantage_B)
        next_value_B = values_BT[:, t].where(acts_B, next_value_B)
        advantage_BT[:, t] = next_advantage_B
    return advantage_BT.masked_fill(~mask_BT, 0.0)
