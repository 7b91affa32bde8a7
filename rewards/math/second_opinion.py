"""What math-verify says of the same two answers. It is shown our own writing of the trees, never a model's text."""

from __future__ import annotations

import threading

from rewards.math.trees import Apply, Group, Number, Quantity, Relation, Symbol, Text, Tree, children

MAX_PIECES = 60
LIMIT_S = 2
MAX_LITERAL = 10**12
"""math-verify computes powers: larger numbers, and powers of powers, are not shown to it."""
SIGNS = {"=": "=", "!=": r"\neq", "<": "<", "<=": r"\leq", "in": r"\in"}


def opinion_of_math_verify(given: Tree | None, wanted: Tree) -> float:
    """1 if it finds them the same, else 0, also where one of them is nothing that it should be shown.

    Raises RuntimeError outside the main thread, where its own time limit does not work.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("math-verify's time limit needs the main thread; leave second_opinion empty here")
    if given is None or not (is_harmless(given) and is_harmless(wanted)):
        return 0.0
    try:
        from math_verify import LatexExtractionConfig, parse, verify
    except ImportError as error:
        raise RuntimeError("second_opinion=math_verify needs that package; install math-verify") from error
    boxes = (LatexExtractionConfig(),)
    gold, answer = (parse(rf"$\boxed{{{latex(t)}}}$", boxes, parsing_timeout=LIMIT_S) for t in (wanted, given))
    return float(verify(gold, answer, timeout_seconds=LIMIT_S))


def is_harmless(tree: Tree) -> bool:
    """Small, and with no power that could be large."""
    return not isinstance(tree, Text) and _pieces(tree) <= MAX_PIECES and _is_small(tree)


def _pieces(tree: Tree) -> int:
    return 1 + sum(_pieces(child) for child in children(tree))


def _is_small(tree: Tree) -> bool:
    if isinstance(tree, Number):
        return abs(tree.value.numerator) <= MAX_LITERAL and tree.value.denominator <= MAX_LITERAL
    if isinstance(tree, Apply):
        if tree.function in ("!", "binom", "gcd", "lcm"):
            return False
        if tree.function == "^" and not _is_small_power(tree):
            return False
    return all(_is_small(child) for child in children(tree))


def _is_small_power(tree: Apply) -> bool:
    exponent = tree.arguments[1]
    if isinstance(exponent, Apply) and exponent.function in ("*", "/"):
        return all(isinstance(part, Symbol) or _is_little(part) for part in exponent.arguments)
    return isinstance(exponent, Symbol) or _is_little(exponent)


def _is_little(tree: Tree) -> bool:
    return isinstance(tree, Number) and abs(tree.value.numerator) <= 100 and tree.value.denominator <= 100


def latex(tree: Tree) -> str:
    """Our own writing of a tree.

    >>> from rewards.math.parser import tree_of
    >>> latex(tree_of("x/2 + 1"))
    '\\\\left(\\\\frac{x}{2}+1\\\\right)'
    """
    match tree:
        case Number(value):
            text = (
                str(value.numerator)
                if value.denominator == 1
                else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
            )
            return text if value >= 0 else f"({text})"
        case Symbol(name):
            return name if len(name) == 1 else _named(name)
        case Quantity(value, _):
            return latex(value)
        case Relation(signs, members):
            return latex(members[0]) + "".join(SIGNS[s] + latex(m) for s, m in zip(signs, members[1:], strict=True))
        case Group(kind, items):
            return _grouped(kind, [latex(item) for item in items])
        case Apply(function, arguments):
            return _applied(function, [latex(argument) for argument in arguments])
    raise ValueError(f"{tree} is not written for math-verify")


def _named(name: str) -> str:
    head, _, script = name.partition("_")
    head = head if len(head) == 1 else f"\\{head} "
    return f"{head}_{{{script}}}" if script else head


def _grouped(kind: str, items: list[str]) -> str:
    if kind in ("matrix", "determinant"):
        name = "pmatrix" if kind == "matrix" else "vmatrix"
        return rf"\begin{{{name}}}" + r"\\".join(items) + rf"\end{{{name}}}"
    if kind == "row":
        return "&".join(items)
    if kind == "union":
        return r"\cup ".join(items)
    if kind == "list":
        return ",".join(items)
    opening, closing = (r"\{", r"\}") if kind == "{}" else (kind[0], kind[1])
    return rf"\left{opening}{','.join(items)}\right{closing}"


def _applied(function: str, arguments: list[str]) -> str:
    match function, arguments:
        case "+", _:
            return rf"\left({'+'.join(arguments)}\right)"
        case "*", _:
            product = r" \cdot ".join(arguments)
            return rf"\left({product}\right)"
        case "/", [over, below]:
            return rf"\frac{{{over}}}{{{below}}}"
        case "^", [base, exponent]:
            return rf"{{\left({base}\right)}}^{{{exponent}}}"
        case "sqrt", [inside]:
            return rf"\sqrt{{{inside}}}"
        case "root", [inside, index]:
            return rf"\sqrt[{index}]{{{inside}}}"
        case (("pm" | "mp"), [inside]):
            return rf"\{function} {inside}"
        case "abs", [inside]:
            return rf"\left|{inside}\right|"
        case "log", [inside, base]:
            return rf"\log_{{{base}}}\left({inside}\right)"
    return rf"\{function}\left({','.join(arguments)}\right)"
