"""What a tree is worth, as an exact fraction where it is rational, else to hundreds of bits: never simplified.

Every power and function is bounded before it is computed. What passes a bound is TooLarge: it then equals only what is
written the same way.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import mpmath
from mpmath import mp

from rewards.math.trees import Apply, Number, Symbol, Tree

MAX_RATIONAL_BITS = 8192
"""Of a numerator or denominator: 2^2015 is fine, 9^9^9 is not."""
MAX_MAGNITUDE_BITS = 4000
"""Of what is not rational; also the sum of all magnitudes in an expression."""
MAX_FACTORIAL = 700
BITS = 384
MAX_WORK = 400_000
"""Bits of precision times functions times points: some tens of milliseconds."""

Value = Fraction | mpmath.mpf | mpmath.mpc
PLAIN = {
    name: getattr(mpmath, name)
    for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp", "ln")
} | {"arcsin": mpmath.asin, "arccos": mpmath.acos, "arctan": mpmath.atan, "arccot": mpmath.acot, "abs": abs}


class TooLarge(ArithmeticError):
    """The value, or the work to find it, passes a limit."""


class Undefined(ArithmeticError):
    """A division by zero, or something that has no value by itself."""


@dataclass(slots=True)
class Budget:
    """Work that one verdict may still do."""

    left: int = MAX_WORK

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise TooLarge


def variables(tree: Tree) -> frozenset[str]:
    """Names that stand for any number; infinity is treated as one."""
    if isinstance(tree, Symbol):
        return frozenset() if tree.name in ("pi", "e", "i") else frozenset([tree.name])
    if isinstance(tree, Apply):
        return frozenset().union(*(variables(part) for part in tree.arguments))
    return frozenset()


def points(names: frozenset[str], count: int) -> list[dict[str, Fraction]]:
    """The same few places for the same names: with both signs, and with 60 digits that no answer is made to fit."""
    places = []
    for index in range(count):
        place = {}
        for name in sorted(names):
            seed = hashlib.sha256(f"{name}/{index}".encode("utf-8", "surrogatepass")).digest()
            chance = random.Random(seed)
            sign = 1 if index == 0 else -1 if index == 1 else chance.choice((1, -1))
            place[name] = sign * Fraction(chance.randrange(10**59, 3 * 10**60), 10**60)
        places.append(place)
    return places


def value_at(tree: Tree, place: Mapping[str, Fraction], budget: Budget, bits: int = BITS) -> tuple[Value, int]:
    """The value and the bits it was computed to, `bits` or more; raises TooLarge or Undefined."""
    while True:
        evaluator = _Evaluator(place=place, budget=budget, bits=bits)
        with mp.workprec(bits):
            try:
                value = evaluator.value(tree)
            except (ZeroDivisionError, ValueError, OverflowError) as error:
                raise Undefined(str(error)) from error
            if isinstance(value, Fraction):
                return value, bits
            if not mpmath.isfinite(value):
                raise Undefined("not finite")
        if evaluator.magnitudes > MAX_MAGNITUDE_BITS:
            raise TooLarge
        if bits >= BITS + 3 * evaluator.magnitudes or evaluator.magnitudes < 64:
            return value, bits
        bits = BITS + 3 * evaluator.magnitudes


def are_equal(one: tuple[Value, int], other: tuple[Value, int]) -> bool:
    """Exactly, if both are rational; else to a third of the bits they were computed to."""
    (a, a_bits), (b, b_bits) = one, other
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    bits = min(a_bits, b_bits)
    with mp.workprec(max(a_bits, b_bits)):
        a, b = as_mp(a), as_mp(b)
        return abs(a - b) <= mpmath.ldexp(max(1, abs(a), abs(b)), -(2 * bits) // 3)


def as_mp(value: Value) -> mpmath.mpf | mpmath.mpc:
    if isinstance(value, Fraction):
        return mpmath.mpf(value.numerator) / value.denominator
    return value


@dataclass(slots=True)
class _Evaluator:
    place: Mapping[str, Fraction]
    budget: Budget
    bits: int
    magnitudes: int = field(default=0)
    """The sum of the sizes of literals and powers, in bits: what a cancellation can eat."""

    def value(self, tree: Tree) -> Value:
        self.budget.spend(60)
        if isinstance(tree, Number):
            return self._sized(tree.value)
        if isinstance(tree, Symbol):
            return self._symbol(tree.name)
        if not isinstance(tree, Apply):
            raise Undefined("no number")
        arguments = [self.value(part) for part in tree.arguments]
        return self._checked(self._applied(tree.function, arguments))

    def _symbol(self, name: str) -> Value:
        if name in self.place:
            return as_mp(self.place[name])
        constants = {"pi": +mp.pi, "e": +mp.e, "i": mpmath.mpc(0, 1)}
        if name not in constants:
            raise Undefined(f"{name} may be any number")
        return constants[name]

    def _applied(self, function: str, arguments: list[Value]) -> Value:
        match function, arguments:
            case "+", _:
                return self._folded(lambda a, b: a + b, arguments)
            case "*", _:
                return self._folded(lambda a, b: a * b, arguments)
            case "/", [over, below]:
                if below == 0:
                    raise Undefined("division by zero")
                return self._folded(lambda a, b: a / b, [over, below])
            case "^", [base, exponent]:
                return self._power(base, exponent)
            case "sqrt", [inside]:
                return self._power(inside, Fraction(1, 2))
            case "root", [inside, Fraction() as index] if index != 0:
                return self._power(inside, 1 / index)
            case "!", [Fraction(denominator=1) as inside] if 0 <= inside <= MAX_FACTORIAL:
                return self._sized(Fraction(math.factorial(int(inside))))
            case "binom", [Fraction(denominator=1) as n, Fraction(denominator=1) as k] if 0 <= k <= n <= 2000:
                return self._sized(Fraction(math.comb(int(n), int(k))))
        return self._function(function, arguments)

    def _folded(self, operation: object, arguments: list[Value]) -> Value:
        result = arguments[0]
        for argument in arguments[1:]:
            if isinstance(result, Fraction) != isinstance(argument, Fraction):
                result, argument = as_mp(result), as_mp(argument)
            result = self._checked(operation(result, argument))
        return result

    def _power(self, base: Value, exponent: Value) -> Value:
        if base == 0:
            if isinstance(exponent, Fraction) and exponent > 0:
                return Fraction(0)
            raise Undefined("a power of zero")
        if isinstance(exponent, Fraction) and abs(exponent.numerator) * _bits(base) > 2 * MAX_RATIONAL_BITS:
            raise TooLarge
        if isinstance(exponent, Fraction) and exponent.denominator == 1:
            return self._sized(base ** int(exponent))
        root = self._exact_root(base, exponent)
        if root is not None:
            return root
        self.budget.spend(self.bits)
        real = as_mp(base)
        if (
            isinstance(exponent, Fraction)
            and exponent.denominator % 2
            and not isinstance(real, mpmath.mpc)
            and real < 0
        ):
            # The real root, as in school: the cube root of -8 is -2.
            sign = -1 if exponent.numerator % 2 else 1
            return sign * self._power(-real, exponent)
        power = as_mp(exponent)
        if abs(power) * (abs(mpmath.log(real)) + 1) > MAX_MAGNITUDE_BITS:
            raise TooLarge
        return self._sized(mpmath.power(real, power))

    def _exact_root(self, base: Value, exponent: Value) -> Fraction | None:
        """A square root that is rational stays exact."""
        if not (
            isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 2 and base > 0
        ):
            return None
        over, below = math.isqrt(base.numerator), math.isqrt(base.denominator)
        if over * over != base.numerator or below * below != base.denominator:
            return None
        return self._sized(Fraction(over, below) ** exponent.numerator)

    def _function(self, name: str, arguments: list[Value]) -> Value:
        if name in ("floor", "ceil", "gcd", "lcm", "min", "max", "abs") and all(
            isinstance(a, Fraction) for a in arguments
        ):
            return _of_fractions(name, arguments)
        self.budget.spend(2 * self.bits)
        values = [as_mp(argument) for argument in arguments]
        if any(abs(value) > 2**64 for value in values) and name not in ("log", "ln", "lg", "abs"):
            raise TooLarge
        match name, values:
            case ("log", [inside, base]):
                return mpmath.log(inside) / mpmath.log(base)
            case ("log" | "lg", [inside]):
                return mpmath.log(inside) / mpmath.log(10)
            case (_, [inside]) if name in PLAIN:
                if name in ("exp", "sinh", "cosh", "tanh") and abs(inside) > MAX_MAGNITUDE_BITS // 2:
                    raise TooLarge
                return self._sized(PLAIN[name](inside))
        raise Undefined(f"{name} has no value")

    def _sized(self, value: Value) -> Value:
        self.magnitudes += _bits(value)
        return self._checked(value)

    def _checked(self, value: Value) -> Value:
        limit = MAX_RATIONAL_BITS if isinstance(value, Fraction) else 2 * MAX_MAGNITUDE_BITS
        if _bits(value) > limit:
            raise TooLarge
        return value


def _bits(value: Value) -> int:
    """Of a fraction, its length; of another number, how far its size is from one."""
    if isinstance(value, Fraction):
        return value.numerator.bit_length() + value.denominator.bit_length() - 1
    size = mpmath.mag(value)
    return abs(int(size)) if mpmath.isfinite(size) else 0


def _of_fractions(name: str, values: list[Fraction]) -> Fraction:
    if name in ("floor", "ceil", "abs") and len(values) == 1:
        return Fraction({"floor": math.floor, "ceil": math.ceil, "abs": abs}[name](values[0]))
    if name in ("gcd", "lcm") and all(value.denominator == 1 for value in values):
        return Fraction({"gcd": math.gcd, "lcm": math.lcm}[name](*(int(value) for value in values)))
    if name in ("min", "max"):
        return {"min": min, "max": max}[name](values)
    raise Undefined(f"{name} has no value")
