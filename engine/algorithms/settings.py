"""Settings that refuse what cannot work, in words."""

from __future__ import annotations

import math


class InvalidSetting(ValueError):
    """A setting that an algorithm cannot work with: says which, its value, and what to choose instead."""


def above_zero(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not (math.isfinite(value) and value > 0):
            raise InvalidSetting(f"{name} is {value}: it must be a finite number above 0")


def below_half(settings: object, *names: str) -> None:
    """Of labels that may be wrong: with half of them wrong there is nothing to learn."""
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value < 0.5:
            raise InvalidSetting(f"{name} is {value}: choose from 0 to below 0.5, or nothing can be learned")


def at_least_zero(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not (math.isfinite(value) and value >= 0):
            raise InvalidSetting(f"{name} is {value}: it must be a finite number, 0 or more")


def share_of_one(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise InvalidSetting(f"{name} is {value}: choose from 0 to 1")
