"""From an answer's text to its tokens: LaTeX, plain text and Unicode spellings of the same thing become the same token.

Nothing is computed here but literal numbers, and those are short: whatever is longer than a limit is Unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from rewards.math.answers import MAX_LENGTH
from rewards.math.trees import Unreadable
from rewards.math.words import ALIASES, CHANGES_THE_NUMBER, FUNCTIONS, GREEK, MULTIPLIERS, UNITS, plain_unit

MAX_DIGITS = 100
"""Of a literal number."""
MAX_LITERAL_EXPONENT = 400
"""Of `1e5`."""

UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "∙": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ",
        "π": r"\pi ", "θ": r"\theta ", "√": r"\sqrt ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ", "∓": r"\mp ", "°": r"\degree ",
        "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "€": r"\euro ",
        "£": r"\pounds ", "’": "'", "“": '"', "”": '"', "\u00a0": " ", "\u2009": " ", "\u202f": " ",
    }
)  # fmt: skip
DRESS = re.compile(
    r"\\(?:left|right)(?![A-Za-z])\.?"
    r"|\\(?:[bB]ig{1,2}[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|mathstrut)(?![A-Za-z])"
    r"|\\[()\[\]](?![0-9a-z.]*pt)"
)
TOKEN = re.compile(
    r"""
      (?P<space>   (?: \s | \\[,;:!> ] | ~ | \\q?quad(?![A-Za-z]) )+ )
    | (?P<text>    \\(?: text(?:bf|it|rm|normal|sf|tt)? | mathrm | mathbf | mathsf | mbox | hbox | operatorname )
                   \s*\*?\s*\{ (?P<inner>[^{}]*) \} )
    | (?P<repeat>  [0-9]*\.[0-9]* \\(?:overline|bar|dot)\s*(?: \{(?P<period>[0-9]+)\} | (?P<digit>[0-9]) ) )
    | (?P<grouped> [1-9][0-9]{0,2} (?: (?: \{,\} | ,?\\[,!;: ]\s? | (?P<loose>,|\ ) ) [0-9]{3} )+
                   (?![0-9]|(?:,|\{,\}|\\,|\ )[0-9]) (?:\.[0-9]+)? (?![0-9.]) )
    | (?P<number>  (?: [0-9]+ (?:\.[0-9]+)? | \.[0-9]+ ) (?: [eE](?P<exponent>[+-]?[0-9]+)(?![A-Za-z0-9]) )? )
    | (?P<begin>   \\(?:begin|end)\s*\{[A-Za-z]{1,12}\*?\} (?:(?<=array\})\s*\{[lcr|\s]*\})? )
    | (?P<command> \\[A-Za-z]+ )
    | (?P<letters> [A-Za-z]+ )
    | (?P<sign>    \\[\\{}%$|\#&] | \*\*|<=|>=|!=|==|!!|\.\.+|. )
    """,
    re.VERBOSE | re.DOTALL,
)
SIGNS = {
    "**": "^", "==": "=", r"\cdot": "*", r"\times": "*", r"\ast": "*", r"\div": "/", r"\leq": "<=", r"\le": "<=",
    r"\leqslant": "<=", r"\geqslant": ">=", r"\geq": ">=", r"\ge": ">=", r"\lt": "<", r"\gt": ">", r"\neq": "!=",
    r"\ne": "!=", r"\in": "in", r"\cup": "cup", r"\pm": "pm", r"\mp": "mp", r"\lbrace": r"\{", r"\rbrace": r"\}",
    r"\langle": "(", r"\rangle": ")", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\mid": "|", r"\|": "||",
    r"\lfloor": "lfloor", r"\rfloor": "rfloor", r"\lceil": "lceil", r"\rceil": "rceil", r"\lbrack": "[",
    r"\rbrack": "]", r"\colon": ":", ";": ",", r"\land": ",", r"\lor": ",", r"\&": "&", r"\cr": r"\\",
    r"\degree": "degree", r"\circ": "degree", r"\%": "%", r"\$": "$", r"\euro": "euro", r"\pounds": "pounds",
    r"\infin": "infty", r"\emptyset": "emptyset", r"\varnothing": "emptyset", r"\lparen": "(", r"\rparen": ")",
    r"\prime": "'", r"\factorial": "!",
}  # fmt: skip
SEPARATORS = ("and", "or", "und", "oder")


@dataclass(frozen=True, slots=True)
class Token:
    """One piece: `kind` is number, name, function, word, or else the sign itself."""

    kind: str
    text: str = ""
    value: Fraction = Fraction(0)
    decimals: int = 0
    spaced: bool = False
    """Whether white space comes before it."""


def tokens_of(text: str) -> list[Token]:
    """The tokens of an answer; raises Unreadable.

    >>> [token.kind for token in tokens_of(r"\\frac{x}{2} \\le 1{,}234\\text{ cm}")]
    ['frac', '{', 'name', '}', '{', 'number', '}', '<=', 'number', 'word']
    """
    if len(text) > MAX_LENGTH:
        raise Unreadable("it is too long")
    text = DRESS.sub(lambda match: " " if match[0][1] in "()[]" else "", undollared(text.translate(UNICODE)))
    tokens: list[Token] = []
    _read(text, tokens)
    return tokens


def undollared(text: str) -> str:
    """Without a formula's dollars and a sentence's full stop, which say nothing; the dollars of money stay."""
    text = text.strip().strip("*`").strip()
    while text.endswith((".", ",", r"\\")) and not text.endswith((r"\,", "..")):
        text = text.removesuffix("\\")[:-1].rstrip()
    for fence in ("$$", "$"):
        if len(text) > 2 * len(fence) and text.startswith(fence) and text.endswith(fence) and text[-2] != "\\":
            return undollared(text[len(fence) : -len(fence)])
    return text


def _read(text: str, tokens: list[Token], *, in_words: bool = False) -> None:
    depth, position, spaced = 0, 0, in_words
    while position < len(text):
        match = TOKEN.match(text, position)
        kind = match.lastgroup or ""
        if kind in ("inner", "period", "digit", "loose", "exponent"):
            kind = next(name for name in ("text", "repeat", "grouped", "number") if match[name])
        if kind == "grouped" and match["loose"] and depth:
            # Inside brackets a comma separates: (1,234) is a pair.
            match = re.compile(r"[0-9]+").match(text, position)
            kind = "number"
            tokens.append(_literal(match[0], spaced))
            position, spaced = match.end(), False
            continue
        position = match.end()
        if kind == "space":
            spaced = True
            continue
        if kind == "text":
            _read_words(match["inner"], tokens)
        else:
            tokens.extend(_made(kind, match, spaced))
        if kind == "sign":
            depth += (match[0] in ("(", "[", r"\{", "{")) - (match[0] in (")", "]", r"\}", "}"))
        spaced = False


def _read_words(inner: str, tokens: list[Token]) -> None:
    """What `\\text{...}` holds: a letter by itself is a choice, or after a number a unit."""
    word = inner.strip()
    follows_number = bool(tokens) and tokens[-1].kind in ("number", "}", ")", "name")
    if len(word) == 1 and word.isalpha():
        tokens.append(Token("word" if follows_number else "name", word, spaced=True))
    else:
        start = len(tokens)
        _read(inner, tokens, in_words=True)
        if follows_number and all(token.kind in ("name", "word", "/", "^", "number") for token in tokens[start:]):
            tokens[start:] = [Token("word", t.text, spaced=True) if t.kind == "name" else t for t in tokens[start:]]


def _made(kind: str, match: re.Match[str], spaced: bool) -> Iterator[Token]:
    if kind in ("number", "grouped", "repeat"):
        yield _repeating(match) if kind == "repeat" else _literal(match[0], spaced)
    elif kind == "begin":
        yield Token("begin" if match[0].startswith(r"\begin") else "end", match[0].split("{")[1].rstrip("}* "))
    elif kind == "command":
        yield from _commanded(match[0], spaced)
    elif kind == "letters":
        yield from _spelled(match[0], spaced)
    else:
        yield Token(SIGNS.get(match[0], match[0]), match[0], spaced=spaced)


def _literal(text: str, spaced: bool) -> Token:
    digits, _, exponent = text.lower().partition("e")
    digits = re.sub(r"[^0-9.]", "", digits)
    if len(digits) > MAX_DIGITS or len(exponent) > 5 or abs(int(exponent or 0)) > MAX_LITERAL_EXPONENT:
        raise Unreadable("a number is too long")
    value = Fraction(digits) * Fraction(10) ** int(exponent or 0)
    return Token("number", digits, value, len(digits.partition(".")[2]), spaced)


def _repeating(match: re.Match[str]) -> Token:
    """`0.1\\overline{6}` is a sixth."""
    head = match[0].partition("\\")[0]
    period = match["period"] or match["digit"]
    places = len(head.partition(".")[2])
    if len(head) + len(period) > MAX_DIGITS:
        raise Unreadable("a number is too long")
    value = Fraction(f"0{head}0") + Fraction(int(period), (10 ** len(period) - 1) * 10**places)
    return Token("number", match[0], value)


def _commanded(command: str, spaced: bool) -> Iterator[Token]:
    name = command[1:]
    if command in SIGNS:
        yield Token(SIGNS[command], command, spaced=spaced)
    elif name in ("dfrac", "tfrac", "cfrac", "frac"):
        yield Token("frac")
    elif name in ("dbinom", "tbinom", "binom"):
        yield Token("binom")
    elif name in ("boxed", "fbox", "mathbf", "mathrm", "text", "textbf", "bf", "rm", "vec", "hat", "overrightarrow"):
        return  # what it wraps is in braces, and read as such
    elif name == "sqrt" or name in FUNCTIONS:
        yield Token("sqrt" if name == "sqrt" else "function", FUNCTIONS.get(name, name), spaced=spaced)
    elif name in GREEK:
        yield Token("name", GREEK[name], spaced=spaced)
    elif name == "infty":
        yield Token("name", "infty")
    else:
        raise Unreadable(f"{command} is no command that we know")


def _spelled(letters: str, spaced: bool) -> Iterator[Token]:
    """A run of letters: a function, a constant, a unit, a word, or variables side by side."""
    low = letters.lower()
    if letters in FUNCTIONS or letters in ("sqrt", "pi", "infty", "infinity", "inf", "oo"):
        yield from _commanded("\\" + ALIASES.get(letters, letters), spaced)
    elif low in SEPARATORS:
        yield Token(",", low)
    elif low in ("in",):
        yield Token("in", low)
    elif low in MULTIPLIERS and spaced:
        yield Token("multiplier", low, MULTIPLIERS[low])
    elif low in CHANGES_THE_NUMBER:
        raise Unreadable(f"{low!r} makes another number of it")
    elif len(letters) == 1:
        yield Token("name", letters, spaced=spaced)
    elif plain_unit(low) in UNITS:
        yield Token("word", low, spaced=spaced)
    elif letters in ("abc", "abcd", "xyz", "pqr", "rst", "uvw") or (len(letters) == 2 and low not in ("no", "is")):
        yield from (Token("name", letter, spaced=spaced and not index) for index, letter in enumerate(letters))
    else:
        yield Token("word", low, spaced=spaced)
