"""Whole runs whose engine runs ahead of the trainer, or is cut off, on the real stack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runs import Finished, forget_after, run_main
from safetensors.numpy import load_file

SMALL = (
    "evaluation.prompts=8",
    "evaluation.every_steps=2",
    "run.steps=6",
    "run.save_every_steps=2",
    "run.keep_checkpoints=9",
    "run.keep_rollouts_every_steps=1",
    "run.tensorboard=false",
    "rollout.prompts_per_step=4",
    "rollout.responses_per_prompt=4",
    "train.schedule=constant",
    "algo.kl_coef=0",
)
STALENESS = 2


def rollouts_of(run: Finished) -> list[dict[str, np.ndarray]]:
    return [load_file(path) for path in sorted((run.folder / "rollouts").glob("*.safetensors"))]


def responses_of(rollouts: dict[str, np.ndarray]) -> dict[tuple[int, int], tuple[list[int], list[int]]]:
    """Tokens, and the version that sampled each, by draw and sample."""
    cut = rollouts["offset"].tolist()
    return {
        (int(draw), int(sample)): (
            rollouts["token_ids"][start:end].tolist(),
            rollouts["version"][start:end].tolist(),
        )
        for draw, sample, start, end in zip(rollouts["draw"], rollouts["sample"], cut, cut[1:], strict=False)
    }


@pytest.fixture(scope="module")
def ahead(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("ahead")
    place = (f"cluster.address={cluster}", f"rollout.max_staleness={STALENESS}")
    run = run_main(*SMALL, *place, folder=folder, name="whole")
    assert run.exit_code == 0, run.output
    return run


def test_each_step_learns_from_the_draws_of_a_run_that_waits_and_none_is_older_than_allowed(ahead: Finished) -> None:
    steps = rollouts_of(ahead)
    assert len(steps) == 6
    seen_old = set()
    for version, rollouts in enumerate(steps):
        own = responses_of(rollouts)
        assert sorted({draw for draw, _ in own}) == list(range(4 * version, 4 * version + 4))
        for _, versions in own.values():
            assert versions == sorted(versions), "a later token is of no earlier weights"
            assert all(0 <= version - sampled <= STALENESS for sampled in versions)
            seen_old |= {version - sampled for sampled in versions}
    assert STALENESS in seen_old, "it did run ahead"
    for version, row in enumerate(ahead.steps):
        tokens = np.concatenate([own[1] for own in responses_of(steps[version]).values()])
        assert row["staleness/mean"] == pytest.approx(float(version - tokens.mean()), abs=1e-9)
        assert row["staleness/max"] == version - tokens.min()


def test_older_weights_are_corrected_for_and_not_taken_for_a_broken_engine(ahead: Finished) -> None:
    first, *later = ahead.steps
    assert first["logprob_gap_max"] < 1e-3 and first["mismatch_k3"] < 1e-6
    assert max(row["mismatch_k3"] for row in later) > 1e-5
    assert all(row["correction_ess"] <= 1 + 1e-9 for row in later) and min(r["correction_ess"] for r in later) < 1


def test_what_was_in_flight_when_a_run_died_is_asked_again(ahead: Finished, cluster: str) -> None:
    """The same draws for every step, the same first step, and no token older than allowed."""
    whole, again = ahead.folder, ahead.folder.with_name("stopped")
    forget_after(whole, again, checkpoint="step_000002")
    place = (f"cluster.address={cluster}", f"rollout.max_staleness={STALENESS}")
    resumed = run_main(*SMALL, *place, folder=ahead.folder.parent, name="stopped")
    assert resumed.exit_code == 0, resumed.output
    assert "going on after step 2" in resumed.output
    for version, (one, other) in enumerate(zip(rollouts_of(ahead), rollouts_of(resumed), strict=True)):
        before, after = responses_of(one), responses_of(other)
        assert before.keys() == after.keys()
        assert all(0 <= version - sampled <= STALENESS for _, own in after.values() for sampled in own)
        if version < 2:
            assert before == after
    # The first batch after it is sampled by the weights of the checkpoint, all of it.
    assert {own for _, versions in responses_of(rollouts_of(resumed)[2]).values() for own in versions} == {2}


@pytest.mark.slow
def test_oversampling_on_the_real_engine_learns_from_the_first_and_cuts_the_others_off(
    cluster: str, tmp_path: Path
) -> None:
    own = ("rollout.oversampling=2", f"cluster.address={cluster}", "rollout.max_response_tokens=64")
    run = run_main(*SMALL, *own, folder=tmp_path, name="cut")
    assert run.exit_code == 0, run.output
    assert "Traceback" not in run.output and "CutOff" not in run.output
    for version, rollouts in enumerate(rollouts_of(run)):
        draws = {draw for draw, _ in responses_of(rollouts)}
        assert len(draws) == 4 and draws <= set(range(8 * version, 8 * version + 8))
    assert all(row["dropped_groups/cut_off"] == 4 for row in run.steps)


@pytest.mark.slow
@pytest.mark.parametrize("swap", ["in_flight", "abort_and_resume"])
def test_the_default_run_learns_to_add_from_rollouts_that_are_a_version_old(swap: str, tmp_path: Path) -> None:
    run = run_main("rollout.max_staleness=1", f"rollout.weight_swap={swap}", folder=tmp_path, name="ahead")
    assert run.exit_code == 0, run.output
    assert run.summary["held_out_after"] >= 0.85 and run.summary["held_out_greedy_after"] >= 0.95
    assert {row["staleness/max"] for row in run.steps[1:]} == {1.0}
