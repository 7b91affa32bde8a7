"""What an answer is once it has been read: small trees of exact numbers, names and operations."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


class Unreadable(ValueError):
    """The text is no mathematics that we know, or passes a limit."""


@dataclass(frozen=True, slots=True)
class Number:
    """An exact rational: `3`, `0.25`, `1,234`."""

    value: Fraction
    decimals: int = 0
    """How many were written after the point."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


@dataclass(frozen=True, slots=True)
class Symbol:
    """A variable, or one of the constants `pi`, `e`, `i`, `infty`."""

    name: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An operation (`+`, `*`, `/`, `^`, `pm`) or a function (`sqrt`, `sin`, `log`), applied."""

    function: str
    arguments: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Several things: `(1, 2)`, `[0, 1)`, `{1, 2}`, a bare list `1, 2`, a union, the rows of a matrix."""

    kind: str
    """The brackets, such as `()`, `[)` or `{}`; or `list`, `union`, `matrix`, `row`, `determinant`."""
    items: tuple[Tree, ...]

    @property
    def is_unordered(self) -> bool:
        return self.kind in ("{}", "list", "union")


@dataclass(frozen=True, slots=True)
class Relation:
    """`members[0] signs[0] members[1] ...`, as in `0 < x <= 5` or `y = 2x`."""

    signs: tuple[str, ...]
    """Of `=`, `!=`, `<`, `<=`, `in`; greater-than is turned around when it is read."""
    members: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with what it counts or measures: `5 cm`, `12 apples`, `50%`, `$3`."""

    value: Tree
    unit: tuple[str, ...]
    """Words in their plain form, sorted."""


@dataclass(frozen=True, slots=True)
class Text:
    """An answer in words, or one that is no mathematics that we know; equal only to the same words."""

    words: str


Tree = Number | Symbol | Apply | Group | Relation | Quantity | Text

EMPTY_SET = Group("{}", ())


def negative(tree: Tree) -> Tree:
    if isinstance(tree, Number):
        return Number(-tree.value, tree.decimals)
    return Apply("*", (Number(Fraction(-1)), tree))


def children(tree: Tree) -> tuple[Tree, ...]:
    if isinstance(tree, Apply):
        return tree.arguments
    if isinstance(tree, Group):
        return tree.items
    if isinstance(tree, Relation):
        return tree.members
    return (tree.value,) if isinstance(tree, Quantity) else ()


def chosen(tree: Tree, sign: int) -> Tree:
    """The tree with plus (1) or minus (-1) wherever it says plus-minus."""
    if isinstance(tree, Apply):
        parts = tuple(chosen(part, sign) for part in tree.arguments)
        if tree.function in ("pm", "mp"):
            minus = (sign < 0) == (tree.function == "pm")
            return negative(parts[0]) if minus else parts[0]
        return Apply(tree.function, parts)
    if isinstance(tree, Group):
        return Group(tree.kind, tuple(chosen(item, sign) for item in tree.items))
    if isinstance(tree, Relation):
        return Relation(tree.signs, tuple(chosen(member, sign) for member in tree.members))
    return Quantity(chosen(tree.value, sign), tree.unit) if isinstance(tree, Quantity) else tree


def has_choice(tree: Tree) -> bool:
    if isinstance(tree, Apply) and tree.function in ("pm", "mp"):
        return True
    return any(has_choice(child) for child in children(tree))
