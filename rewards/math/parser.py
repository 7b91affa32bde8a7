"""From tokens to a tree, by precedence: relations, unions, sums, products, powers, and what stands by itself.

    answer   := item ((',' | 'and' | 'or') item)*          item  := union (relation union)* unit*
    union    := sum ('cup' sum)*                            sum   := [sign] product (('+' | '-' | 'pm') product)*
    product  := factor (('*' | '/' | nothing) factor)*      factor := [sign] primary ['^' factor] ['!' | '%']

Nothing is computed. The depth and the number of pieces are bounded, and what does not fit is Unreadable.
"""

from __future__ import annotations

from rewards.math.pieces import Pieces
from rewards.math.tokens import Token, tokens_of
from rewards.math.trees import (
    Apply,
    Group,
    Number,
    Quantity,
    Relation,
    Tree,
    Unreadable,
    children,
    negative,
)
from rewards.math.words import plain_unit

RELATIONS = ("=", "!=", "<", "<=", ">", ">=", "in")
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


class _Parser(Pieces):
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
                sign = self._take("/", ":")
                tree = Apply("/", (tree, self._factor()))
                if sign.kind == ":" == self.now.kind:
                    raise Unreadable("a ratio of more than two")
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


def _measures(tree: Tree) -> bool:
    """Whether a unit may follow: something that has digits in it."""
    return isinstance(tree, Number) or any(_measures(child) for child in children(tree))
