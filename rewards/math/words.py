"""Words in answers: functions, Greek letters, units, multipliers, and words that make another number of one."""

from __future__ import annotations

from fractions import Fraction

NAMES_OF_FUNCTIONS = """
sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp abs floor ceil det gcd lcm min max
"""
FUNCTIONS = {name: name for name in NAMES_OF_FUNCTIONS.split()} | {
    "arccot": "arccot",
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "cosec": "csc",
    "tg": "tan",
}
ALIASES = {"infinity": "infty", "inf": "infty", "oo": "infty"}
NAMES_OF_LETTERS = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi omega
Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell
"""
GREEK = {name: name for name in NAMES_OF_LETTERS.split()} | {
    "varepsilon": "epsilon",
    "vartheta": "theta",
    "varphi": "phi",
    "varrho": "rho",
    "varsigma": "sigma",
}

MULTIPLIERS = {
    name + plural: Fraction(value)
    for name, value in {
        "hundred": 100,
        "thousand": 10**3,
        "million": 10**6,
        "billion": 10**9,
        "trillion": 10**12,
    }.items()
    for plural in ("", "s")
}
WORDS_THAT_CHANGE = """
not if to times plus minus over by divided squared cubed factorial more less than about half halves third thirds
quarter quarters tenth tenths double twice dozen dozens mn bn zero one two three four five six seven eight nine ten
eleven twelve twenty thirty forty fifty sixty seventy eighty ninety negative except approximately roughly between
choose mod modulo remainder least most
"""
CHANGES_THE_NUMBER = frozenset(WORDS_THAT_CHANGE.split())
"""Words beside a number that are no unit: with them it is another number, or two."""

NAMES_OF_UNITS = """
millimeter mm millimetre millimetres millimeters
centimeter cm centimetre centimetres centimeters
meter metre metres meters
kilometer km kilometre kilometres kilometers
inch inches in.
foot feet ft
yard yd yds
mile mi
gram gm
kilogram kg kgs kilo
milligram mg
pound lb lbs
ounce oz
ton tons tonne tonnes
liter litre litres liters
milliliter ml millilitre
gallon gal
second sec secs
minute min mins
hour hr hrs
day
week wk
month
year yr yrs
dollar usd bucks
cent
euro eur
degree deg
radian rad
percent pct
mph
kph kmh
square sq
cubic cu
per
unit
joule watt volt newton pascal kelvin celsius fahrenheit hertz
"""
UNITS: dict[str, str] = {}
"""Every spelling of a unit's name -> its plain form."""
for _line in NAMES_OF_UNITS.strip().splitlines():
    _first, *_others = _line.split()
    if _first == "joule":
        UNITS |= {name: name for name in _line.split()}
    else:
        UNITS |= {spelling: _first for spelling in (_first, *_others)}
del UNITS["min"]  # the function; "mins" stays
LETTERS_OF_UNITS = {"m": "meter", "s": "second", "g": "gram", "h": "hour", "l": "liter", "L": "liter"}


def plain_unit(word: str) -> str:
    """One spelling for a unit: its plain form if it is known, else the word without the s of its plural.

    >>> plain_unit("cm"), plain_unit("feet"), plain_unit("hours"), plain_unit("apples"), plain_unit("glass")
    ('centimeter', 'foot', 'hour', 'apple', 'glass')
    """
    if word in UNITS or word in LETTERS_OF_UNITS:
        return UNITS.get(word) or LETTERS_OF_UNITS[word]
    singular = word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
    return UNITS.get(singular, singular)
