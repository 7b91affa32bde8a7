"""Does the response think first, and then answer?"""

from __future__ import annotations

from rewards.format import enclosed, has_text
from rewards.score import keeps_nothing


@keeps_nothing
def thinks(
    response: str, answer: str, *, answer_tag: str = "answer", opened: bool = False, **row: object
) -> dict[str, float]:
    """`{"format": 1.0}` for `<think>...</think><answer>...</answer>`, neither of them empty.

    With `answer_tag` empty, the answer is whatever follows `</think>`. With `opened`, the chat template has written
    `<think>` already, and the response goes on from there.

    >>> thinks("<think>2 + 2</think><answer>4</answer>", "4"), thinks("<think></think>a", "a", answer_tag="")
    ({'format': 1.0}, {'format': 0.0})
    >>> thinks("2 + 2</think>4", "4", answer_tag="", opened=True)
    {'format': 1.0}
    """
    text = f"<think>{response}" if opened else response
    if answer_tag:
        return {"format": float(enclosed(text, ["think", answer_tag]) is not None)}
    thought, _, rest = text.partition("</think>")
    whole = enclosed(f"{thought}</think>", ["think"]) is not None
    again = "<think>" in rest or "</think>" in rest
    return {"format": float(whole and has_text(rest) and not again)}
