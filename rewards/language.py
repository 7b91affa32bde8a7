"""Is the response in the script that was asked for?

Scripts are seen, languages are not: English, German and a row of random letters are all Latin, and Chinese shares its
signs with Japanese. A formula's or a program's Latin letters count as Latin. So this holds a model to answering a
Russian question in Cyrillic; it does not tell Russian from Ukrainian, nor either from nonsense.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from rewards.score import keeps_nothing

SCRIPTS = {
    **dict.fromkeys(["en", "de", "fr", "es", "it", "pt", "nl", "pl", "tr", "vi", "id"], ("LATIN",)),
    **dict.fromkeys(["ru", "uk", "bg"], ("CYRILLIC",)),
    **dict.fromkeys(["ar", "fa", "ur"], ("ARABIC",)),
    **dict.fromkeys(["hi", "mr", "ne"], ("DEVANAGARI",)),
    "zh": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL",),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "th": ("THAI",),
    "bn": ("BENGALI",),
    "ta": ("TAMIL",),
}
"""The scripts that a language is written in, by its ISO 639-1 code."""


@keeps_nothing
def written_in(response: str, answer: str, *, language: str, **row: object) -> dict[str, float]:
    """The share of the response's letters that belong to `language`: a code like `ru`, or a script like `CYRILLIC`.

    A response without a letter scores 0: it is written in no language.

    >>> written_in("Ответ: да", "", language="ru"), written_in("Да, yes", "", language="ru")["language"]
    ({'language': 1.0}, 0.4)
    """
    return {"language": share_in(response, SCRIPTS.get(language.lower(), (language.upper(),)))}


@keeps_nothing
def as_asked(
    response: str, answer: str, *, messages: Sequence[Mapping[str, str]], **row: object
) -> dict[str, float] | None:
    """The share of the response's letters that are of the scripts of the last turn it answers.

    A script is that turn's if it has a fifth of its letters or more. None if it has no letter.

    >>> asked = [{"role": "user", "content": "Верно?"}]
    >>> as_asked("Да.", "", messages=asked), as_asked("Yes.", "", messages=asked)
    ({'language': 1.0}, {'language': 0.0})
    >>> as_asked("4", "", messages=[{"role": "user", "content": "2+2="}]) is None
    True
    """
    counts = scripts_of(messages[-1]["content"] if messages else "")
    wanted = [script for script, count in counts.items() if count >= counts.total() / 5]
    return {"language": share_in(response, wanted)} if wanted else None


def share_in(text: str, scripts: Sequence[str]) -> float:
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
        if letter.isalpha():
            counts[_script(letter)] += number
    return counts


@functools.lru_cache(maxsize=10_000)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNNAMED").partition(" ")[0].partition("-")[0]
