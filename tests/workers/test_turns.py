"""Trainers and engines that share GPUs take turns, and whoever is stopped in the engines' turn can still save."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from workers.team import Workers


def turns(*, shares_devices: bool) -> tuple[Workers, list[str]]:
    """Workers that write down what they are asked for."""
    log: list[str] = []

    def role(name: str, *verbs: str) -> SimpleNamespace:
        return SimpleNamespace(**{verb: lambda verb=verb: log.append(f"{name} {verb}") for verb in verbs})

    return (
        Workers(
            policy=role("policy", "offload", "reload"),
            critic=role("critic", "offload", "reload"),
            reference=role("reference"),
            rollout=role("rollout", "sleep", "wake"),
            reward=role("reward"),
            judge=SimpleNamespace(needed=nullcontext),
            roll_call=SimpleNamespace(),
            shares_devices=shares_devices,
        ),
        log,
    )


TO_ENGINES, TO_TRAINERS = ["policy offload", "critic offload"], ["rollout sleep", "policy reload", "critic reload"]


def test_the_engines_turn_and_then_the_trainers() -> None:
    workers, log = turns(shares_devices=True)
    with workers.generating():
        assert log == TO_ENGINES
    with workers.learning():
        assert log == TO_ENGINES + TO_TRAINERS


def test_a_stop_in_the_engines_turn_gives_the_trainers_theirs_to_save_in() -> None:
    workers, log = turns(shares_devices=True)
    with pytest.raises(KeyboardInterrupt), workers.generating():
        raise KeyboardInterrupt
    assert log == TO_ENGINES + TO_TRAINERS


def test_a_stop_while_the_trainers_make_room_gives_it_back() -> None:
    """They may be writing a checkpoint first, so this can take a while."""
    workers, log = turns(shares_devices=True)

    def stop() -> None:
        raise KeyboardInterrupt

    workers.critic.offload = stop
    with pytest.raises(KeyboardInterrupt), workers.generating():
        pass
    assert log == TO_ENGINES[:1] + TO_TRAINERS


def test_an_error_in_the_engines_turn_is_told_and_nobody_is_moved() -> None:
    workers, log = turns(shares_devices=True)
    with pytest.raises(ValueError, match="broken"), workers.generating():
        raise ValueError("broken")
    assert log == TO_ENGINES


def test_with_devices_of_their_own_nobody_is_moved() -> None:
    workers, log = turns(shares_devices=False)
    with pytest.raises(KeyboardInterrupt), workers.generating():
        raise KeyboardInterrupt
    with workers.learning():
        assert log == []
