"""Pairs of answers that are the same, and pairs that nearly are, made from a seed: what a judge should say is known.

A pair is made from one value, written in two ways, or from two values that differ a little, each written in some way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import sympy


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two answers, and whether they are the same."""

    form: str
    reference: str
    response: str
    same: bool


def fraction(chance: random.Random) -> Fraction:
    return Fraction(chance.randrange(-60, 60) or 7, chance.randrange(2, 30))


def neighbour(value: Fraction, chance: random.Random) -> Fraction:
    changed = (value + chance.choice((1, -1)), -value, value + Fraction(1, 10), value * 10, value + Fraction(1, 1000))
    return next(other for other in chance.sample(changed, len(changed)) if other != value)


def write_fraction(value: Fraction, chance: random.Random) -> str:
    times = chance.randrange(1, 4)
    over, below = abs(value.numerator) * times, value.denominator * times
    sign = "-" if value < 0 else ""
    if below == times and chance.random() < 0.5:
        return f"{sign}{over // times}"
    return chance.choice(
        (rf"{sign}\frac{{{over}}}{{{below}}}", rf"{sign}\dfrac{{{over}}}{{{below}}}", f"{sign}{over}/{below}")
    )


def write_decimal(value: Fraction, chance: random.Random) -> str:
    """`value` has at most three decimals."""
    plain = f"{float(value):.3f}".rstrip("0").rstrip(".")
    return chance.choice((plain, f"{float(value):.3f}", write_fraction(value, chance), rf"{plain}\,", f"${plain}$"))


def decimal(chance: random.Random) -> Fraction:
    return Fraction(chance.randrange(-99_999, 99_999), 1000)


def large(chance: random.Random) -> Fraction:
    return Fraction(chance.randrange(10**3, 10**9))


def write_large(value: Fraction, chance: random.Random) -> str:
    grouped = f"{int(value):,}"
    spellings = (grouped, str(value), grouped.replace(",", "{,}"), grouped.replace(",", r"\,"), rf"\${grouped}")
    return chance.choice((*spellings, f"{value}.00", f"{grouped} dollars"))


def root(chance: random.Random) -> Fraction:
    """Stands for value * sqrt(2)."""
    return fraction(chance)


def write_root(value: Fraction, chance: random.Random) -> str:
    over, below = value.numerator, value.denominator
    return chance.choice(
        (
            rf"\frac{{{over}\sqrt{{2}}}}{{{below}}}",
            rf"\frac{{{over}}}{{{below}}}\sqrt{{2}}",
            rf"\frac{{{2 * over}}}{{{below}\sqrt{{2}}}}",
            rf"\frac{{{over}\sqrt{{8}}}}{{{2 * below}}}",
            f"{over}*sqrt(2)/{below}",
        )
    )


def write_pi(value: Fraction, chance: random.Random) -> str:
    over, below = value.numerator, value.denominator
    return chance.choice(
        (
            rf"\frac{{{over}\pi}}{{{below}}}",
            rf"\frac{{{over}}}{{{below}}}\pi",
            f"{over}π/{below}",
            f"({over}/{below})*pi",
        )
    )


def several(chance: random.Random) -> tuple[Fraction, ...]:
    return tuple(Fraction(number, 2) for number in chance.sample(range(-40, 40), chance.randrange(2, 5)))


def changed_several(values: tuple[Fraction, ...], chance: random.Random) -> tuple[Fraction, ...]:
    kind = chance.randrange(3)
    if kind == 0:
        return values[:-1] or (Fraction(100),)
    if kind == 1:
        return (*values, Fraction(101))
    return (*values[:-1], neighbour(values[-1], chance) + 50)


def write_set(values: Sequence[Fraction], chance: random.Random) -> str:
    texts = [write_fraction(value, chance) for value in chance.sample(values, len(values))]
    return rf"\{{{', '.join(texts)}\}}" if chance.random() < 0.5 else rf"\left\{{{','.join(texts)}\right\}}"


def write_tuple(values: Sequence[Fraction], chance: random.Random) -> str:
    texts = [write_fraction(value, chance) for value in values]
    return f"({', '.join(texts)})" if chance.random() < 0.5 else rf"\left({','.join(texts)}\right)"


def swapped(values: tuple[Fraction, ...], chance: random.Random) -> tuple[Fraction, ...]:
    if len(values) > 1 and chance.random() < 0.5:
        return (values[1], values[0], *values[2:])
    return changed_several(values, chance)


Ends = tuple[Fraction, Fraction, str]


def interval(chance: random.Random) -> Ends:
    low = fraction(chance)
    return low, low + chance.randrange(1, 20), chance.choice(("()", "[)", "(]", "[]"))


def other_interval(ends: Ends, chance: random.Random) -> Ends:
    low, high, kind = ends
    if chance.random() < 0.5:
        return low, high, chance.choice([other for other in ("()", "[)", "(]", "[]") if other != kind])
    return low, high + 1, kind


def write_interval(ends: Ends, chance: random.Random) -> str:
    low, high, kind = ends
    a, b = write_fraction(low, chance), write_fraction(high, chance)
    if chance.random() < 0.4:
        below, above = ("<" if end in "()" else r"\le" for end in kind)
        return f"{a} {below} x {above} {b}"
    return f"{kind[0]}{a}, {b}{kind[1]}" if chance.random() < 0.5 else rf"\left{kind[0]}{a},{b}\right{kind[1]}"


def polynomial(chance: random.Random) -> tuple[int, ...]:
    """Its roots, and before them a factor."""
    return (chance.choice((1, 2, 3)), *(chance.randrange(-6, 7) for _ in range(chance.randrange(2, 4))))


def other_polynomial(value: tuple[int, ...], chance: random.Random) -> tuple[int, ...]:
    return (*value[:-1], value[-1] + chance.choice((1, 2, -15)))


def write_polynomial(value: tuple[int, ...], chance: random.Random) -> str:
    x = sympy.Symbol("x")
    product = value[0] * sympy.Mul(*(x - at for at in value[1:]))
    return sympy.latex(product if chance.random() < 0.5 else sympy.expand(product))


def matrix(chance: random.Random) -> tuple[Fraction, ...]:
    return tuple(Fraction(chance.randrange(-9, 10), chance.choice((1, 1, 2))) for _ in range(4))


def other_matrix(value: tuple[Fraction, ...], chance: random.Random) -> tuple[Fraction, ...]:
    a, b, c, d = value
    return (a, c, b, d) if b != c and chance.random() < 0.5 else (a, b, c, d + 1)


def write_matrix(value: tuple[Fraction, ...], chance: random.Random) -> str:
    a, b, c, d = (write_fraction(item, chance) for item in value)
    kind = chance.choice(("pmatrix", "bmatrix"))
    return rf"\begin{{{kind}}} {a} & {b} \\ {c} & {d} \end{{{kind}}}"


def line(chance: random.Random) -> tuple[int, int]:
    return chance.randrange(2, 9), chance.randrange(-9, 9) or 1


def other_line(value: tuple[int, int], chance: random.Random) -> tuple[int, int]:
    return chance.choice(((value[0] + 1, value[1]), (value[0], -value[1]), (-value[0], value[1])))


def write_line(value: tuple[int, int], chance: random.Random) -> str:
    slope, at = value
    factor = chance.randrange(2, 5)
    shapes = (f"y = {slope}x {at:+}", f"{slope}x - y {at:+} = 0", f"{factor}y = {factor * slope}x {factor * at:+}")
    return chance.choice(shapes)


def power(chance: random.Random) -> tuple[int, int]:
    return chance.choice((2, 3, 5, 7)), chance.randrange(40, 120)


def other_power(value: tuple[int, int], chance: random.Random) -> tuple[int, int]:
    return value[0], value[1] + chance.choice((1, -1))


def write_power(value: tuple[int, int], chance: random.Random) -> str:
    base, up = value
    return chance.choice(
        (
            rf"\frac{{1}}{{{base}^{{{up}}}}}",
            f"1/{base}^{{{up}}}",
            f"{base}^{{-{up}}}",
            rf"\frac{{{base}}}{{{base}^{{{up + 1}}}}}",
        )
    )


FORMS: dict[str, tuple[Callable, Callable, Callable]] = {
    "fraction": (fraction, neighbour, write_fraction),
    "decimal": (decimal, neighbour, write_decimal),
    "large number": (large, lambda value, chance: value + chance.choice((1, -1, 1000, 10**9)), write_large),
    "root": (root, neighbour, write_root),
    "pi": (fraction, neighbour, write_pi),
    "set": (several, changed_several, write_set),
    "tuple": (several, swapped, write_tuple),
    "interval": (interval, other_interval, write_interval),
    "polynomial": (polynomial, other_polynomial, write_polynomial),
    "matrix": (matrix, other_matrix, write_matrix),
    "line": (line, other_line, write_line),
    "power": (power, other_power, write_power),
}
"""Of each form: a value, one that is nearly it, and a way to write it."""


def pairs(count: int, *, seed: int) -> list[Pair]:
    """`count` pairs that are the same and as many that are not, over all forms alike."""
    chance = random.Random(seed)
    made = []
    for index in range(count):
        form = list(FORMS)[index % len(FORMS)]
        value_of, other_of, write = FORMS[form]
        value = value_of(chance)
        other = other_of(value, chance)
        one, two, third, fourth = (write(v, chance) for v in (value, value, value, other))
        made.append(Pair(form=form, reference=one, response=two, same=True))
        made.append(Pair(form=form, reference=third, response=fourth, same=False))
    return made
