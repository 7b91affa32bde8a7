"""Final answers of mathematics, judged without ever executing or simplifying a model's text: `rewards.math:correct`."""

from rewards.math.verdict import correct

__all__ = ["correct"]
