"""Is the response in the script that was asked for?

Scripts are seen, languages are not: English, German and a row of random letters are all Latin, and Chinese shares its
signs with Japanese. A formula's or a program's Latin letters count as Latin. So this holds a model to answering a
Russian question in Cyrillic; it does not tell Russian from Ukrainian, nor either from nonsense.
"""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from rewards.score import keeps_nothing

LATIN = (
    "af ca cs da de en es et eu fi fil fr ga gl hr hu id is it lt lv ms mt nb nl nn no pl pt ro sk sl sq sv sw tl tr vi"
)
SCRIPTS = {
    **dict.fromkeys(LATIN.split(), ("LATIN",)),
    **dict.fromkeys(["ru", "uk", "bg", "be", "mk", "kk", "ky", "mn"], ("CYRILLIC",)),
    **dict.fromkeys(["ar", "fa", "ur", "ps"], ("ARABIC",)),
    **dict.fromkeys(["hi", "mr", "ne"], ("DEVANAGARI",)),
    **dict.fromkeys(["am", "ti"], ("ETHIOPIC",)),
    "zh": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL",),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "yi": ("HEBREW",),
    "th": ("THAI",),
    "lo": ("LAO",),
    "km": ("KHMER",),
    "my": ("MYANMAR",),
    "si": ("SINHALA",),
    "bn": ("BENGALI",),
    "gu": ("GUJARATI",),
    "pa": ("GURMUKHI",),
    "ta": ("TAMIL",),
    "te": ("TELUGU",),
    "kn": ("KANNADA",),
    "ml": ("MALAYALAM",),
    "ka": ("GEORGIAN",),
    "hy": ("ARMENIAN",),
}
"""The scripts that a language is written in, by its ISO 639-1 code."""
JAPANESE = frozenset(SCRIPTS["ja"])
NO_SCRIPT = frozenset(["MODIFIER", "CARON", "VERTICAL", "VEDIC"])
"""First words of the names of letters that any script may use, as Ukrainian does its apostrophe."""


@keeps_nothing
def written_in(response: str, answer: str, *, language: str, **row: object) -> dict[str, float]:
    """The share of the response's letters that belong to `language`: a code like `ru` or `pt-BR`, or a script like
    `CYRILLIC`.

    A response without a letter scores 0: it is written in no language. Raises ValueError where `language` is neither.

    >>> written_in("Ответ: да", "", language="ru"), written_in("Да, yes", "", language="ru")["language"]
    ({'language': 1.0}, 0.4)
    """
    return {"language": share_in(response, scripts_for(language))}


@keeps_nothing
def as_asked(
    response: str, answer: str, *, messages: Sequence[Mapping[str, str]], **row: object
) -> dict[str, float] | None:
    """The share of the response's letters that are of the scripts of the last turn it answers.

    A script is that turn's if it has a fifth of its letters or more; Japanese has three, which come together. None if
    the turn has no letter.

    >>> asked = [{"role": "user", "content": "Верно?"}]
    >>> as_asked("Да.", "", messages=asked), as_asked("Yes.", "", messages=asked)
    ({'language': 1.0}, {'language': 0.0})
    >>> as_asked("4", "", messages=[{"role": "user", "content": "2+2="}]) is None
    True
    """
    counts = scripts_of(messages[-1]["content"] if messages else "")
    wanted = {script for script, count in counts.items() if count >= counts.total() / 5}
    if wanted & {"HIRAGANA", "KATAKANA"}:
        wanted |= JAPANESE
    return {"language": share_in(response, wanted)} if wanted else None


def scripts_for(language: str) -> Collection[str]:
    """Of a code or a script's name. Raises ValueError for what is neither: no letter would be of that script.

    >>> scripts_for("pt-BR"), scripts_for("tibetan")
    (('LATIN',), ('TIBETAN',))
    """
    code, script = language.lower().replace("_", "-").partition("-")[0], language.upper()
    if code in SCRIPTS:
        return SCRIPTS[code]
    if script not in _all_scripts():
        raise ValueError(
            f"language is {language!r}, neither a script as Unicode names letters (CYRILLIC) nor one of the codes "
            f"{', '.join(sorted(SCRIPTS))}; set it in the reward's arguments"
        )
    return (script,)


@functools.cache
def _all_scripts() -> frozenset[str]:
    letters = (chr(code) for code in range(sys.maxunicode + 1))
    return frozenset(_script_of(letter) for letter in letters if letter.isalpha())


def share_in(text: str, scripts: Collection[str]) -> float:
    """Of the letters of a text, those in one of `scripts`; 0 where it has none."""
    counts = scripts_of(text)
    return sum(counts[script] for script in set(scripts)) / counts.total() if counts else 0.0


def scripts_of(text: str) -> Counter[str]:
    """How many letters of each script.

    >>> scripts_of("Ja, да 1!"), scripts_of("Ｆ")
    (Counter({'LATIN': 2, 'CYRILLIC': 2}), Counter({'LATIN': 1}))
    """
    # NFKC: full-width and mathematical letters are the letters that they are a style of.
    counts: Counter[str] = Counter()
    for letter, number in Counter(unicodedata.normalize("NFKC", text)).items():
        if letter.isalpha() and (script := _script(letter)) not in NO_SCRIPT:
            counts[script] += number
    return counts


def _script_of(letter: str) -> str:
    name = unicodedata.name(letter, "UNNAMED")
    # Chinese and Japanese write them for the sign before.
    return "CJK" if "IDEOGRAPHIC" in name else name.partition(" ")[0].partition("-")[0]


_script = functools.lru_cache(maxsize=10_000)(_script_of)
