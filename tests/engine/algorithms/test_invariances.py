"""What must not matter to any algorithm, in any mode: junk, order, padding, tool spans, and how rows were split."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from every_algorithm import ALGORITHMS, algorithm_of, every_algorithm, every_mode
from loss_rows import Rows, credited, figures, gradient
from torch import Tensor

import engine.algorithms
from engine.algorithms.aggregation import Aggregation
from engine.algorithms.base import Algorithm
from workers.records import Experience, Loss, Totals

SPLITS: list[list[list[int]]] = [[[i] for i in range(6)], [[1, 4], [0, 2, 3, 5]], [[5, 0], [], [2, 4, 1, 3]]]
"""Rows one by one, two and the rest, and one with a rank that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """All that an algorithm makes of rows: figures of the step, and tensors with a row for each of them."""

    figures: dict[str, float]
    tensors_BT: dict[str, Tensor]


def learn(algorithm: Algorithm, rows: Rows, totals: Totals) -> Learned:
    credit = credited(algorithm, rows)

    def past(own: Rows) -> Experience:
        return replace(own.experience(), credit=credit)

    def policy_loss(own: Rows) -> Loss:
        return algorithm.policy_loss(own.policy(), past(own), totals, algorithm.initial_state())

    seen = {f"policy {name}": value for name, value in figures(policy_loss(rows)).items()}
    tensors_BT = {
        "advantages": credit.advantages_BT,
        "returns": credit.returns_BT,
        "divergence": algorithm.divergence(rows.batch(), rows.outputs()),
        "gradient": gradient(lambda own: policy_loss(own).value, rows),
        "entropy gradient": gradient(lambda own: policy_loss(own).value, rows, "entropy_BT"),
    }
    if algorithm.needs.critic:
        loss = algorithm.value_loss(rows.values_BT, past(rows), totals)
        seen |= {f"value {name}": value for name, value in figures(loss).items()}
        tensors_BT["value gradient"] = gradient(
            lambda own: algorithm.value_loss(own.values_BT, past(own), totals).value, rows, "values_BT"
        )
    return Learned(figures=seen, tensors_BT=tensors_BT)


def assert_same(actual: Learned, expected: Learned) -> None:
    assert actual.figures == pytest.approx(expected.figures, rel=1e-12, abs=1e-14)
    for name, tensor_BT in expected.tensors_BT.items():
        torch.testing.assert_close(actual.tensors_BT[name], tensor_BT, rtol=1e-12, atol=1e-14, msg=name)


def kept(learned: Learned, rows: list[int], width: int) -> Learned:
    """Some rows' tensors, and their first columns."""
    return replace(learned, tensors_BT={name: own_BT[rows, :width] for name, own_BT in learned.tensors_BT.items()})


def test_the_table_holds_every_algorithm_that_ships() -> None:
    modules = [
        importlib.import_module(f"engine.algorithms.{m.name}") for m in pkgutil.iter_modules(engine.algorithms.__path__)
    ]
    classes = {cls for module in modules for _, cls in inspect.getmembers(module, inspect.isclass)}
    shipped = {cls for cls in classes if issubclass(cls, Algorithm) and not inspect.isabstract(cls)}
    assert {type(algorithm) for algorithm in ALGORITHMS.values()} == shipped


def test_importing_them_loads_nothing_heavy() -> None:
    modules = ", ".join(sorted({type(algorithm).__module__ for algorithm in ALGORITHMS.values()}))
    heavy = "{'torch', 'ray', 'transformers', 'vllm', 'deepspeed'}"
    code = f"import sys, {modules}, engine.algorithms.sft; print(sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


@every_mode
@every_algorithm
def test_something_is_learned(random_rows: Rows, name: str, mode: Aggregation) -> None:
    """All that follows would hold of an algorithm that learns nothing."""
    learned = learn(algorithm_of(name, mode), random_rows, random_rows.totals())
    assert all(math.isfinite(value) for value in learned.figures.values())
    assert abs(learned.figures["policy value"]) > 1e-3
    gradient_BT = learned.tensors_BT["gradient"]
    assert (gradient_BT[random_rows.mask_BT] != 0).sum() >= 8
    for tensor_BT in learned.tensors_BT.values():
        assert (tensor_BT[~random_rows.mask_BT] == 0).all()


@every_mode
@every_algorithm
def test_junk_at_masked_positions_changes_nothing(random_rows: Rows, name: str, mode: Aggregation) -> None:
    """Pitfalls 5 and 7: also in a ratio of whole responses."""
    algorithm, totals = algorithm_of(name, mode), random_rows.totals()
    clean = learn(algorithm, random_rows, totals)
    for junk in (math.nan, math.inf, -math.inf):
        spoiled = learn(algorithm, random_rows.spoiled(junk), totals)
        assert spoiled.figures == clean.figures
        assert all(torch.equal(spoiled.tensors_BT[key], tensor_BT) for key, tensor_BT in clean.tensors_BT.items())


@every_algorithm
def test_the_loss_of_a_token_is_zero_where_there_is_none(random_rows: Rows, name: str) -> None:
    """Whoever sums it without a mask is right too."""
    rows, algorithm = random_rows.spoiled(math.nan), ALGORITHMS[name]
    own = algorithm.token_loss(rows.policy(), rows.experience())
    assert (own.loss_BT[~rows.mask_BT] == 0).all()
    assert all(metric_BT.isfinite().all() for metric_BT in own.metrics_BT.values())
    summed_BT = gradient(lambda moved: algorithm.token_loss(moved.policy(), moved.experience()).loss_BT.sum(), rows)
    assert (summed_BT[~rows.mask_BT] == 0).all() and (summed_BT[rows.mask_BT] != 0).any()


@every_mode
@every_algorithm
def test_the_order_of_rows_changes_nothing(random_rows: Rows, name: str, mode: Aggregation) -> None:
    algorithm, totals, order = algorithm_of(name, mode), random_rows.totals(), [3, 0, 5, 2, 4, 1]
    whole = learn(algorithm, random_rows, totals)
    assert_same(learn(algorithm, random_rows.at(order), totals), kept(whole, order, 6))


@every_mode
@every_algorithm
def test_seven_more_columns_of_padding_change_nothing(random_rows: Rows, name: str, mode: Aggregation) -> None:
    """Pitfall 4: the padded width is no horizon."""
    algorithm, totals = algorithm_of(name, mode), random_rows.totals()
    padded = learn(algorithm, random_rows.padded(7, math.nan), totals)
    assert_same(kept(padded, list(range(6)), 6), learn(algorithm, random_rows, totals))
    assert all((tensor_BT[:, 6:] == 0).all() for tensor_BT in padded.tensors_BT.values())


@every_mode
@every_algorithm
def test_the_split_into_micro_batches_changes_nothing(random_rows: Rows, name: str, mode: Aggregation) -> None:
    """Pitfalls 1 to 3: shares are of the step's own totals, for every term, and add up."""
    algorithm, totals = algorithm_of(name, mode), random_rows.totals()
    whole = learn(algorithm, random_rows, totals)
    for parts in SPLITS:
        shares = [learn(algorithm, random_rows.at(rows), totals) for rows in parts]
        total = {key: sum(share.figures[key] for share in shares) for key in whole.figures}
        assert total == pytest.approx(whole.figures, rel=1e-12, abs=1e-14)
        for rows, share in zip(parts, shares, strict=True):
            assert_same(replace(share, figures={}), replace(kept(whole, rows, 6), figures={}))


@every_mode
@every_algorithm
def test_a_row_without_action_tokens_changes_nothing(random_rows: Rows, name: str, mode: Aggregation) -> None:
    """Pitfall 5: it counts as no token, no sequence, no prompt."""
    algorithm, totals = algorithm_of(name, mode), random_rows.totals()
    more = random_rows.with_an_empty_row().spoiled(math.nan)
    assert more.totals() == totals
    learned = learn(algorithm, more, totals)
    assert_same(kept(learned, list(range(6)), 6), learn(algorithm, random_rows, totals))
    assert all((tensor_BT[6] == 0).all() for tensor_BT in learned.tensors_BT.values())


@every_mode
@every_algorithm
def test_what_a_tool_wrote_changes_nothing(random_rows: Rows, name: str, mode: Aggregation) -> None:
    """Pitfalls 9 and 10: credit passes over a tool's tokens as if they were not there, at no discount."""
    algorithm, totals, mask_BT = algorithm_of(name, mode), random_rows.totals(), random_rows.mask_BT
    together = random_rows.without_gaps()
    with_tool, without = learn(algorithm, random_rows, totals), learn(algorithm, together, totals)
    assert together.mask_BT[5].tolist() == [True] * 4 + [False] * 2
    assert without.figures == pytest.approx(with_tool.figures, rel=1e-12, abs=1e-14)
    for key, tensor_BT in with_tool.tensors_BT.items():
        torch.testing.assert_close(
            without.tensors_BT[key][together.mask_BT], tensor_BT[mask_BT], rtol=1e-12, atol=1e-14, msg=key
        )


@every_mode
@every_algorithm
def test_a_batch_without_action_tokens_has_loss_zero_and_zero_gradient(
    random_rows: Rows, name: str, mode: Aggregation
) -> None:
    nothing = replace(
        random_rows,
        mask_BT=torch.zeros_like(random_rows.mask_BT),
        prompt_tokens_B=torch.zeros_like(random_rows.prompt_tokens_B),
    ).spoiled(math.nan)
    learned = learn(algorithm_of(name, mode), nothing, nothing.totals())
    assert set(learned.figures.values()) == {0.0}
    assert all((tensor_BT == 0).all() for tensor_BT in learned.tensors_BT.values())


@every_mode
@every_algorithm
def test_the_arithmetic_stays_in_the_precision_of_the_policy(random_rows: Rows, name: str, mode: Aggregation) -> None:
    floats = {key: own.float() for key, own in random_rows.tensors().items() if own.is_floating_point()}
    rows, algorithm = replace(random_rows, **floats), algorithm_of(name, mode)
    loss = algorithm.policy_loss(rows.policy(), rows.experience(), rows.totals(), algorithm.initial_state())
    assert loss.value.dtype == torch.float32
    assert {metric.dtype for metric in loss.metrics.values()} == {torch.float32}
    assert not any(metric.requires_grad for metric in loss.metrics.values())
