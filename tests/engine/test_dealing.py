"""Ranks are done at the same time: rows are dealt by what they cost, siblings together as far as that balances."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.dealing import Place, Siblings, WorkModel, deal
from engine.sizes import ModelSizes

FAMILIES = st.lists(
    st.builds(
        lambda prompt, rows: Siblings(prompt=prompt, rows=tuple(rows)),
        st.sampled_from([0.0, 3.0, 50.0]),
        st.lists(st.floats(1.0, 40.0), max_size=6),
    ),
    min_size=1,
    max_size=8,
)
SMOLLM2 = ModelSizes(
    layers=30, hidden=576, intermediate=1536, heads=9, key_value_heads=3, head_dimension=64, vocabulary=49152,
    tied_embeddings=True, positions=8192, parameters=134515008,
)  # fmt: skip


def load(rows: Sequence[Place], families: Sequence[Siblings]) -> float:
    """By hand."""
    own = sum(families[family].rows[row] for family, row in rows)
    return own + sum(families[family].prompt for family in {family for family, _ in rows})


@given(FAMILIES, st.integers(1, 5))
@settings(deadline=None)
def test_every_row_is_dealt_once_and_no_rank_is_without(families: list[Siblings], ranks: int) -> None:
    dealt = deal(families, ranks)
    everything = [(number, row) for number, family in enumerate(families) for row in range(len(family.rows))]
    assert sorted(itertools.chain(*dealt)) == everything
    assert all(rows == sorted(rows) for rows in dealt)
    assert sum(bool(rows) for rows in dealt) == min(ranks, len(everything))


@given(st.lists(st.integers(1, 60), min_size=2, max_size=7), st.sampled_from([0.0, 10.0]))
@settings(deadline=None, max_examples=60)
def test_two_ranks_are_close_to_the_best_of_all_ways(costs: list[int], prompt: float) -> None:
    """Against every way there is; a family of two, the others alone."""
    families = [Siblings(prompt=prompt, rows=tuple(map(float, costs[:2])))]
    families += [Siblings(prompt=prompt, rows=(float(cost),)) for cost in costs[2:]]
    places = [(number, row) for number, family in enumerate(families) for row in range(len(family.rows))]
    best = min(
        max(load([p for p, own in zip(places, who, strict=True) if own == rank], families) for rank in (0, 1))
        for who in itertools.product((0, 1), repeat=len(places))
    )
    own = max(load(rows, families) for rows in deal(families, 2))
    assert best <= own + 1e-9 <= 1.25 * best + 1e-6


def of_lognormal_lengths(count: int, work: WorkModel) -> list[Siblings]:
    """Groups of eight."""
    random, families = np.random.default_rng(1), []
    for _ in range(count):
        prompt = int(random.integers(50, 500))
        lengths = np.exp(random.normal(5.0, 0.8, 8)).clip(1, 1024).astype(int)
        rows = tuple(work.row(prompt, int(length)) for length in lengths)
        families.append(Siblings(prompt=work.prompt(prompt), rows=rows))
    return families


@pytest.mark.parametrize("ranks", [2, 8, 32, 128])
@pytest.mark.parametrize(("shares", "groups"), [(False, 2), (True, 8), (True, 2)], ids=["alone", "shared", "few"])
def test_the_longest_rank_has_hardly_more_to_do_than_the_mean(shares: bool, groups: int, ranks: int) -> None:
    """`groups` a rank; a group that is divided costs its prompt again."""
    families = of_lognormal_lengths(groups * ranks, WorkModel.of(SMOLLM2, shares_prompts=shares))
    dealt = deal(families, ranks)
    loads = [load(rows, families) for rows in dealt]
    assert max(loads) <= 1.02 * sum(loads) / ranks
    whole = sum(family.prompt + sum(family.rows) for family in families)
    assert sum(loads) <= 1.03 * whole, "prompts are computed again and again"


def test_siblings_stay_together_where_that_balances() -> None:
    families = [Siblings(prompt=10.0, rows=(5.0,) * 4)] * 4
    assert deal(families, 4) == [[(number, row) for row in range(4)] for number in range(4)]


def test_one_family_is_divided_among_all_ranks() -> None:
    dealt = deal([Siblings(prompt=100.0, rows=(1.0,) * 8)], 4)
    assert sorted(map(len, dealt)) == [2, 2, 2, 2]


@pytest.mark.parametrize("shares", [False, True])
def test_what_a_row_costs_is_what_its_passes_multiply(shares: bool) -> None:
    """Against multiplications counted one matrix after the other, in units of one token's way through the layers."""
    work = WorkModel.of(SMOLLM2, shares_prompts=shares)
    prompt, response = 300, 40
    token = 30 * (576 * 576 * 2 + 576 * 192 * 2 + 3 * 576 * 1536)
    pairs = 30 * 2 * 576  # scores, and values by scores

    def text(tokens: int) -> float:
        return tokens * token + tokens**2 / 2 * pairs

    head = response * 4 / 3 * 576 * 49152
    whole = text(prompt + response) + head
    alone = whole - text(prompt) if shares else whole
    assert work.row(prompt, response) == pytest.approx(alone / token)
    assert work.prompt(prompt) == pytest.approx(text(prompt) / token if shares else 0.0)


def test_of_a_model_that_nobody_knows_every_token_costs_the_same() -> None:
    work = WorkModel.of(ModelSizes(), shares_prompts=True)
    assert (work.prompt(30), work.row(30, 4)) == (30.0, 4.0)
