"""What stands by itself in an answer: numbers, names, fractions, roots, functions, brackets, matrices; and powers."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from rewards.math.tokens import Token
from rewards.math.trees import EMPTY_SET, Apply, Group, Number, Symbol, Tree, Unreadable, negative

MAX_DEPTH = 40
CLOSING = {"(": (")", "]"), "[": ("]", ")"), r"\{": (r"\}",), "{": ("}",), "lfloor": ("rfloor",), "lceil": ("rceil",)}
MATRICES = {"pmatrix": "matrix", "bmatrix": "matrix", "Bmatrix": "matrix", "matrix": "matrix", "array": "matrix"} | {
    "smallmatrix": "matrix",
    "vmatrix": "determinant",
}


class Pieces:
    """Reads pieces off a list of tokens; the parser above it knows how they are joined."""

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

    def items(self) -> Tree:
        """Everything up to a closing bracket, or the end."""
        raise NotImplementedError

    def _sum(self) -> Tree:
        raise NotImplementedError

    def _factor(self) -> Tree:
        """A piece with its sign and its power."""
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

    def _primary(self) -> Tree:
        return self._deeper(self._primary_here)

    def _primary_here(self) -> Tree:
        token = self.now
        self._at += 1
        match token.kind:
            case "number" if self._take("_"):
                return Symbol(f"{token.text}_{self._script_text()}")  # in another base: equal to its own writing
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
