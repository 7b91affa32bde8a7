"""Whether two answers are the same: symmetric by construction, never by a subset, and bounded in work.

Two expressions are the same if they have the same value, or with variables, the same value at a few fixed places of 60
digits each. Rational values are compared exactly. Others are computed to 384 bits or more (the more, the larger or
smaller their parts) and must agree to two thirds of them: answers that differ do not agree so far unless made to, and
the limits on digits and exponents leave no room to make them. What is too large to compute equals its own writing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from mpmath import mp, mpc

from rewards.math.trees import (
    Apply,
    Group,
    Number,
    Quantity,
    Relation,
    Symbol,
    Text,
    Tree,
    chosen,
    has_choice,
    negative,
)
from rewards.math.values import BITS, Budget, TooLarge, Undefined, Value, are_equal, as_mp, points, value_at, variables
from rewards.math.words import LETTERS_OF_UNITS, UNITS

PLACES = 3
PHYSICAL = (frozenset(UNITS.values()) | frozenset(LETTERS_OF_UNITS.values()) | {"square", "cubic", "per"}) - {"unit"}

Sampled = tuple[Value, int] | None
"""A value with its bits at one place, or None where it has none there."""


def same(one: Tree, other: Tree) -> bool:
    """Whether two trees are the same answer.

    >>> from rewards.math.parser import tree_of
    >>> same(tree_of("(x+1)^2"), tree_of("x^2+2x+1")), same(tree_of("(1,2)"), tree_of("(2,1)"))
    (True, False)
    """
    if one == other:
        return True
    # In one order whichever is asked first: where the budget ends the search, it ends for both directions.
    one, other = sorted((one, other), key=repr)
    try:
        return _Comparison().same(standard(one), standard(other))
    except TooLarge:
        return False


def standard(tree: Tree) -> Tree:
    """One form for what is written in several: both signs of a plus-minus, solutions, inequalities as intervals."""
    if has_choice(tree):
        items = tree.items if isinstance(tree, Group) and tree.kind == "list" else (tree,)
        tree = Group("list", tuple(chosen(item, sign) for item in items for sign in (1, -1)[: 1 + has_choice(item)]))
    if isinstance(tree, Group) and tree.kind == "list":
        return _standard_list(tree)
    return tree


def _standard_list(tree: Group) -> Tree:
    """`x = 1 or x = 2` and `x = 1, 2` are `1, 2`; `x < 0 or x > 1` is a union."""
    items = tree.items
    first = items[0]
    if solved_for(first) and not any(isinstance(item, Relation) for item in items[1:]):
        items = (first.members[-1], *items[1:])
    names = {(solved_for(item) or "").partition("_")[0] for item in items}
    if len(names) == 1 and names != {""}:
        return Group("list", tuple(item.members[-1] for item in items))
    intervals = [as_interval(item) for item in items]
    if any(isinstance(item, Relation) for item in items) and all(intervals):
        return Group("union", tuple(intervals))
    return Group("list", items)


def solved_for(tree: Tree) -> str:
    """The name in `x = 5`, `f(x) = 5` and `x in S`, or nothing."""
    if not (isinstance(tree, Relation) and tree.signs in (("=",), ("in",))):
        return ""
    left, right = tree.members
    if isinstance(left, Group) and left.kind == "()" and all(isinstance(item, Symbol) for item in left.items):
        return ",".join(item.name for item in left.items)
    if isinstance(left, Apply) and left.function == "*" and all(isinstance(part, Symbol) for part in left.arguments):
        # f(x) has been read as a product; y = f(x) is told from xy = 5 by the usual names of functions.
        names = [part.name for part in left.arguments]
        is_call = names[0] in ("f", "g", "h", "p", "P", "F", "G", "q", "Q") and names[0] not in variables(right)
        return names[0] if is_call else ""
    return left.name if isinstance(left, Symbol) and left.name not in variables(right) else ""


def as_interval(tree: Tree) -> Tree | None:
    """`0 < x <= 5` as `(0, 5]`, `x > 5` as `(5, infinity)`; None for what is none."""
    if isinstance(tree, Group):
        return tree if len(tree.items) == 2 and tree.kind in ("()", "(]", "[)", "[]") else None
    if not isinstance(tree, Relation) or not set(tree.signs) <= {"<", "<="}:
        return None
    names = [isinstance(member, Symbol) and member.name != "infty" for member in tree.members]
    if names.count(True) != 1 or any(
        variables(m) - {"infty"} for m, n in zip(tree.members, names, strict=True) if not n
    ):
        return None
    at = names.index(True)
    if len(tree.members) > 3 or (len(tree.members) == 3 and at != 1):
        return None
    infinity = Symbol("infty")
    low, below = (tree.members[at - 1], tree.signs[at - 1]) if at else (negative(infinity), "<")
    high, above = (tree.members[at + 1], tree.signs[at]) if at + 1 < len(names) else (infinity, "<")
    return Group(("(" if below == "<" else "[") + (")" if above == "<" else "]"), (low, high))


@dataclass(slots=True)
class _Comparison:
    """One verdict: its budget of work, and the values found so far."""

    budget: Budget = field(default_factory=Budget)
    found: dict[tuple[Tree, frozenset[str], int], list[Sampled]] = field(default_factory=dict)

    def same(self, one: Tree, other: Tree) -> bool:
        self.budget.spend(20)
        if isinstance(one, Number) and isinstance(other, Number):
            return one.value == other.value
        if isinstance(one, Quantity) or isinstance(other, Quantity):
            return self._same_quantity(one, other)
        if isinstance(one, Relation) or isinstance(other, Relation):
            return self._same_relation(one, other)
        if isinstance(one, Group) or isinstance(other, Group):
            return isinstance(one, Group) and isinstance(other, Group) and self._same_group(one, other)
        if isinstance(one, Text) or isinstance(other, Text):
            return one == other
        return self._same_value(one, other)

    def _same_quantity(self, one: Tree, other: Tree) -> bool:
        """A unit that only one side names is taken for granted; two units must not contradict each other."""
        a, b = (tree if isinstance(tree, Quantity) else Quantity(tree, ()) for tree in (one, other))
        if not _compatible(frozenset(a.unit), frozenset(b.unit)):
            return False
        if self.same(a.value, b.value):
            return True
        hundredth = Number(Fraction(1, 100))
        if a.unit == ("percent",) and not b.unit:
            return self.same(Apply("*", (hundredth, a.value)), b.value)
        return b.unit == ("percent",) and not a.unit and self.same(a.value, Apply("*", (hundredth, b.value)))

    def _same_relation(self, one: Tree, other: Tree) -> bool:
        if isinstance(one, Relation) and isinstance(other, Relation):
            if solved_for(one) and solved_for(one) == solved_for(other):
                return self.same(one.members[-1], other.members[-1])
            return self._same_chain(one, other)
        relation, value = (one, other) if isinstance(one, Relation) else (other, one)
        if isinstance(value, Group) and as_interval(relation):
            return self.same(as_interval(relation), value)
        return bool(solved_for(relation)) and self.same(standard(relation.members[-1]), value)

    def _same_chain(self, one: Relation, other: Relation) -> bool:
        """The same signs between sides that differ by one factor: 2x + y = 3 is y = 3 - 2x, and x < 1 is 2x < 2."""
        if len(one.signs) == len(other.signs) == 1 and one.signs == other.signs and one.signs != ("in",):
            return self._proportional(_difference(one), _difference(other), positive=one.signs[0] in ("<", "<="))
        return one.signs == other.signs and self._same_in_order(one.members, other.members)

    def _same_group(self, one: Group, other: Group) -> bool:
        kinds = {"{}": "unordered", "list": "unordered"}
        if kinds.get(one.kind, one.kind) != kinds.get(other.kind, other.kind) or len(one.items) != len(other.items):
            return False
        if not one.is_unordered:
            return self._same_in_order(one.items, other.items)
        left = list(other.items)
        for item in one.items:
            match = next((index for index, candidate in enumerate(left) if self.same(item, candidate)), None)
            if match is None:
                return False
            del left[match]
        return True

    def _same_in_order(self, ones: Sequence[Tree], others: Sequence[Tree]) -> bool:
        return len(ones) == len(others) and all(self.same(a, b) for a, b in zip(ones, others, strict=True))

    def _same_value(self, one: Tree, other: Tree) -> bool:
        if one == other:
            return True
        names = variables(one) | variables(other)
        pairs = self._pairs(one, other, names)
        # A place where neither has a value says nothing; where one has none, they differ.
        return any(a and b for a, b in pairs) and all(are_equal(a, b) if a and b else a is b for a, b in pairs)

    def _proportional(self, one: Tree, other: Tree, *, positive: bool) -> bool:
        names = variables(one) | variables(other)
        if not names:
            return False
        ones, others = zip(*self._pairs(one, other, names), strict=True)
        if not all([*ones, *others]) or any(are_equal(v, (Fraction(0), v[1])) for v in [*ones, *others]):
            return False
        ratios = [self._ratio(a, b) for a, b in zip(ones, others, strict=True)]
        return all(are_equal(ratios[0], ratio) for ratio in ratios) and not (positive and _is_negative(ratios[0][0]))

    def _ratio(self, one: tuple[Value, int], other: tuple[Value, int]) -> tuple[Value, int]:
        bits = min(one[1], other[1])
        with mp.workprec(bits):
            return as_mp(one[0]) / as_mp(other[0]), bits

    def _pairs(self, one: Tree, other: Tree, names: frozenset[str]) -> list[tuple[Sampled, Sampled]]:
        """Both values at each place, computed to the same number of bits: those of the side that needs more."""
        bits = BITS
        while True:
            values = [self._values(tree, names, bits) for tree in (one, other)]
            needed = max((sampled[1] for side in values for sampled in side if sampled), default=bits)
            if needed == bits:
                return list(zip(*values, strict=True))
            bits = needed

    def _values(self, tree: Tree, names: frozenset[str], bits: int) -> list[Sampled]:
        key = (tree, names, bits)
        if key not in self.found:
            places = points(names, PLACES if names else 1)
            self.found[key] = [self._value(tree, place, bits) for place in places]
        return self.found[key]

    def _value(self, tree: Tree, place: dict[str, Fraction], bits: int) -> Sampled:
        try:
            return value_at(tree, place, self.budget, bits)
        except Undefined:
            return None


def _compatible(one: frozenset[str], other: frozenset[str]) -> bool:
    if not one or not other or one == other:
        return True
    return not (one | other) & PHYSICAL and (one <= other or other <= one)


def _difference(relation: Relation) -> Tree:
    left, right = relation.members
    return Apply("+", (left, negative(right)))


def _is_negative(value: Value) -> bool:
    return value.real < 0 if isinstance(value, mpc) else value < 0
