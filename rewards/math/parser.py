"""From tokens to a tree, by precedence: relations, unions, sums, products, powers, and what stands by itself.

    answer   := item ((',' | 'and' | 'or') item)*          item  := union (relation union)* unit*
    union    := sum ('cup' sum)*                            sum   := [sign] product (('+' | '-' | 'pm') product)*
    product  := factor (('*' | '/' | nothing) factor)*      factor := [sign] primary ['^' factor] ['!' | '%']

Nothing is computed. The depth and the number of pieces are bounded, and what does not fit is Unreadable.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from rewards.math.tokens import Token, tokens_of
from rewards.math.trees import (
    EMPTY_SET,
    Apply,
    Group,
    Number,
    Quantity,
    Relation,
    Symbol,
    Tree,
    Unreadable,
    children,
    negative,
)
from rewards.math.words import plain_unit

MAX_DEPTH = 40
RELATIONS = ("=", "!=", "<", "<=", ">", ">=", "in")
CLOSING = {"(": (")", "]"), "[": ("]", ")"), r"\{": (r"\}",), "{": ("}",), "lfloor": ("rfloor",), "lceil": ("rceil",)}
MATRICES = {"pmatrix": "matrix", "bmatrix": "matrix", "Bmatrix": "matrix", "matrix": "matrix", "array": "matrix"} | {
    "smallmatrix": "matrix",
    "vmatrix": "determinant",
}
CURRENCIES = {"$": "dollar", "euro": "euro", "pounds": "gbp"}
STARTS = ("name", "function", "frac", "sqrt", "binom", "(", "[", "{", "lfloor", "lceil", "begin")
"""What a factor may begin with when no sign comes before it."""


def tree_of(text: str) -> Tree:
    """The tree of an answer; raises Unreadable.

    >>> tree_of("2x")
    Apply(function='*', arguments=(Number(value=Fraction(2, 1), decimals=0), Symbol(name='x')))
    >>> tree_of("(1, 2]").kind, tree_of("1 or 2").kind
    ('(]', 'list')
    """
    parser = _Parser(tokens_of(text))
    tree = parser.items()
    if parser.now.kind != "end of text":
        raise Unreadable(f"{parser.now.text or parser.now.kind!r} is out of place")
    return tree


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = [*tokens, Token("end of text")]
        self._at = 0
        self._depth = 0
        self._bars = 0
        """How many |...| are open."""

    @property
    def now(self) -> Token:
        return self._tokens[self._at]

    def _take(self, *kinds: str) -> Token | None:
        if self.now.kind not in kinds:
            return None
        self._at += 1
        return self._tokens[self._at - 1]

    def _need(self, *kinds: str) -> Token:
        token = self._take(*kinds)
        if token is None:
            raise Unreadable(f"{self.now.text or self.now.kind!r} where {' or '.join(kinds)} should be")
        return token

    def _deeper(self, read: Callable[[], Tree]) -> Tree:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable("it is nested too deeply")
        tree = read()
        self._depth -= 1
        return tree

    # ------------------------------------------------------------------ several things, and things with units

    def items(self) -> Tree:
        """One item, or a bare list of several."""
        first = self.item()
        if self.now.kind != ",":
            return first
        items = [first]
        while self._take(","):
            while self._take(","):  # 1, and 2
                pass
            items.append(self.item())
        return Group("list", tuple(items))

    def item(self) -> Tree:
        currency = CURRENCIES.get(self.now.kind)
        minus = self.now.kind == "-" and self._tokens[self._at + 1].kind in CURRENCIES
        if minus:
            self._at += 1
            currency = CURRENCIES[self.now.kind]
        if currency:
            self._at += 1
        tree = self._relation()
        tree = negative(tree) if minus else tree
        return self._with_unit(tree, [currency] if currency else [])

    def _with_unit(self, tree: Tree, unit: list[str]) -> Tree:
        if multiplier := self._take("multiplier"):
            tree = Apply("*", (Number(multiplier.value), tree))
        while self.now.kind in ("word", "degree", "%", "$", "euro", "pounds") or (unit and self.now.kind in ("/", "*")):
            token = self._take(self.now.kind)
            if token.kind in ("/", "*"):
                unit.append("per" if token.kind == "/" else "times")
                token = self._need("word", "name")
            named = {"degree": "degree", "%": "percent"} | CURRENCIES
            words = [named.get(token.kind) or plain_unit(token.text)]
            if self.now.kind == "^":
                self._at += 1
                braced = self._take("{")
                power = self._need("number")
                words += {2: ["square"], 3: ["cubic"]}.get(power.value, [f"^{power.value}"])
                if braced:
                    self._need("}")
            unit += words
        unit = [word for word in unit if word not in ("unit", "the", "of", "a", "an", "is")]
        if not unit:
            return tree
        if len(unit) > 6 or not _measures(tree):
            raise Unreadable("words that are no unit")
        return Quantity(tree, tuple(sorted(unit)))

    def _relation(self) -> Tree:
        if self.now.kind == "word" and self.now.text:
            raise Unreadable("words")
        members, signs = [self._union()], []
        while sign := self._take(*RELATIONS):
            signs.append(sign.kind)
            members.append(self._union())
        if not signs:
            return members[0]
        if all(sign in (">", ">=") for sign in signs):
            members.reverse()
            signs = [sign.replace(">", "<") for sign in reversed(signs)]
        return Relation(tuple(signs), tuple(members))

    def _union(self) -> Tree:
        parts = [self._sum()]
        while self._take("cup"):
            parts.append(self._sum())
        return parts[0] if len(parts) == 1 else Group("union", tuple(parts))

    # ------------------------------------------------------------------ sums, products, powers

    def _sum(self) -> Tree:
        return self._deeper(self._sum_here)

    def _sum_here(self) -> Tree:
        terms = [self._signed(self._take("+", "-", "pm", "mp"))]
        while sign := self._take("+", "-", "pm", "mp"):
            terms.append(self._signed(sign))
        return terms[0] if len(terms) == 1 else Apply("+", tuple(terms))

    def _signed(self, sign: Token | None) -> Tree:
        term = self._product()
        if sign is None or sign.kind == "+":
            return term
        return negative(term) if sign.kind == "-" else Apply(sign.kind, (term,))

    def _product(self) -> Tree:
        tree = self._mixed() or self._factor()
        while True:
            if self._take("*"):
                tree = Apply("*", (tree, self._factor()))
            elif self.now.kind in ("/", ":") and self._tokens[self._at + 1].kind != "word":
                self._at += 1
                tree = Apply("/", (tree, self._factor()))
            elif self._starts_a_factor():
                tree = Apply("*", (tree, self._factor()))
            else:
                return tree

    def _starts_a_factor(self) -> bool:
        return self.now.kind in STARTS or (self.now.kind == "|" and not self._bars)

    def _mixed(self) -> Tree | None:
        """`2\\frac{1}{2}` and `2 1/2` are two and a half; `3\\frac{5}{2}` is a product."""
        start = self._at
        whole = self._take("number")
        if whole is not None and whole.value.denominator == 1 and not whole.decimals:
            fraction = None
            if self.now.kind == "frac":
                fraction = self._primary()
            elif self.now.kind == "number" and self.now.spaced and self._tokens[self._at + 1].kind == "/":
                over = self._primary()
                self._at += 1
                fraction = Apply("/", (over, self._primary())) if self.now.kind == "number" else None
            if isinstance(fraction, Apply) and self.now.kind not in ("^", "!"):
                match fraction.arguments:
                    case (Number(over), Number(below)) if 0 < over < below and over.denominator == 1:
                        return Apply("+", (Number(whole.value), fraction))
        self._at = start
        return None

    def _factor(self) -> Tree:
        if sign := self._take("-", "+"):
            factor = self._deeper(self._factor)
            return negative(factor) if sign.kind == "-" else factor
        return self._powered(self._primary())

    def _powered(self, tree: Tree) -> Tree:
        while True:
            if self.now.kind == "^" and self._is_degree_sign():
                return tree
            if self._take("^"):
                tree = Apply("^", (tree, self._script()))
            elif self._take("!"):
                tree = Apply("!", (tree,))
            else:
                return tree

    def _is_degree_sign(self) -> bool:
        """`^\\circ` and `^{\\circ}` are a unit: the hat goes, so that the unit is next."""
        after = [token.kind for token in self._tokens[self._at + 1 : self._at + 4]]
        if after[:1] == ["degree"]:
            del self._tokens[self._at]
        elif after == ["{", "degree", "}"]:
            del self._tokens[self._at + 3], self._tokens[self._at : self._at + 2]
        return self.now.kind == "degree"

    def _script(self) -> Tree:
        """After `^` or `_`: braces, a signed factor, or TeX's single digit."""
        if self.now.kind in ("-", "+"):
            return self._deeper(self._factor)
        tree = self._primary()
        # 2^3^2 is 2^(3^2), as in 2**3**2.
        return Apply("^", (tree, self._deeper(self._script))) if self._take("^") else tree

    # ------------------------------------------------------------------ what stands by itself

    def _primary(self) -> Tree:
        return self._deeper(self._primary_here)

    def _primary_here(self) -> Tree:
        token = self.now
        self._at += 1
        match token.kind:
            case "number":
                return Number(token.value, token.decimals)
            case "name":
                return self._name(token)
            case "frac" | "binom":
                over = self._argument()
                return Apply("/" if token.kind == "frac" else "binom", (over, self._argument()))
            case "sqrt":
                return self._root()
            case "function":
                return self._function(token.text)
            case "emptyset":
                return EMPTY_SET
            case "begin":
                return self._matrix(token.text)
            case "|":
                return self._absolute()
            case "(" | "[" | r"\{" | "{" | "lfloor" | "lceil":
                return self._bracketed(token.kind)
        raise Unreadable(f"{token.text or token.kind!r} is out of place")

    def _name(self, token: Token) -> Tree:
        name = token.text
        while self.now.kind == "'":
            self._at += 1
            name += "'"
        if not self._take("_"):
            return Symbol(name)
        inside = self._script_text()
        return Symbol(f"{name}_{inside}")

    def _script_text(self) -> str:
        if not self._take("{"):
            return self._need("number", "name", "word").text
        parts = []
        while not self._take("}"):
            parts.append(self._need("number", "name", "word", ",", "+", "-", "(", ")").text)
        return "".join(parts)

    def _argument(self) -> Tree:
        """Of \\frac and \\sqrt: braces, or TeX's single piece: \\frac12 is a half."""
        token = self.now
        if token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            first, rest = token.text[0], token.text[1:]
            self._tokens[self._at] = Token("number", rest, Fraction(rest))
            return Number(Fraction(first))
        return self._primary()

    def _root(self) -> Tree:
        index: Tree | None = None
        if self._take("["):
            index = self._sum()
            self._need("]")
        inside = self._primary()
        return Apply("sqrt", (inside,)) if index is None else Apply("root", (inside, index))

    def _function(self, name: str) -> Tree:
        base: Tree | None = None
        power: Tree | None = None
        if name == "log" and self._take("_"):
            base = self._argument()
        if self._take("^"):
            power = self._script()
        if name in ("log",) and base is None and self._take("_"):
            base = self._argument()
        bracketed = self.now.kind in ("(", "[", "{", "|")
        inside = self._primary()
        while not bracketed and self.now.kind == "^":
            inside = self._powered(inside)
        while not bracketed and self.now.kind in ("name", "frac", "sqrt"):
            inside = Apply("*", (inside, self._powered(self._primary())))
        if not bracketed and self._is_degree_sign():
            self._at += 1
            inside = Apply("*", (inside, Apply("/", (Symbol("pi"), Number(Fraction(180))))))
        arguments = inside.items if isinstance(inside, Group) else (inside,)
        if power == Number(Fraction(-1)):
            return Apply(f"arc{name}", arguments)
        tree = Apply("log", (*arguments, base)) if base is not None else Apply(name, arguments)
        return tree if power is None else Apply("^", (tree, power))

    def _absolute(self) -> Tree:
        self._bars += 1
        inside = self._sum()
        self._need("|")
        self._bars -= 1
        return Apply("abs", (inside,))

    def _bracketed(self, opening: str) -> Tree:
        bars, self._bars = self._bars, 0
        if closing := self._take(*CLOSING[opening]):
            self._bars = bars
            return EMPTY_SET if opening == r"\{" else Group(opening + closing.kind, ())
        inside = self.items()
        closing = self._need(*CLOSING[opening])
        self._bars = bars
        if opening in ("lfloor", "lceil"):
            return Apply("floor" if opening == "lfloor" else "ceil", (inside,))
        if opening == r"\{" or (opening == "{" and self._depth < 4 and isinstance(inside, Group)):
            return Group("{}", inside.items if _is_list(inside) else (inside,))
        if _is_list(inside):
            return Group((opening + closing.kind).replace("{", "(").replace("}", ")"), inside.items)
        return inside

    def _matrix(self, kind: str) -> Tree:
        if kind not in MATRICES:
            raise Unreadable(f"an environment {kind!r}")
        rows, row = [], [self._sum()]
        while not self._take("end"):
            if self._take("&"):
                row.append(self._sum())
            else:
                self._need(r"\\")
                rows.append(Group("row", tuple(row)))
                if self.now.kind == "end":
                    row = []
                    continue
                row = [self._sum()]
        if row:
            rows.append(Group("row", tuple(row)))
        return Group(MATRICES[kind], tuple(rows))


def _is_list(tree: Tree) -> bool:
    return isinstance(tree, Group) and tree.kind == "list"


def _measures(tree: Tree) -> bool:
    """Whether a unit may follow: something that has digits in it."""
    return isinstance(tree, Number) or any(_measures(child) for child in children(tree))
