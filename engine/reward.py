"""Try a reward on texts of your own: what it gives, how it is called, how long it takes.

python -m engine.reward my.py:correct --response "so 46" --answer 46
python -m engine.reward my.py:correct --response "a" --response "b" --answer a --row '{"level": 3}' --argument bonus=0.2
python -m engine.reward rewards.math:correct --response '\\boxed{1/2}' --answer 0.5

It runs as in a run: imported and called in processes that are killed when they take too long. Exit code: 0 every
response has a score, 1 one could not be judged, 2 a mistake in what was typed or in the file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing

from engine.config import load_config
from engine.config_error import ConfigError
from engine.judging import reward_specs
from rewards.item import Item
from rewards.load import RewardError, check_columns
from rewards.score import Judgement, Score
from rewards.spec import Convention
from workers.canary import FOREIGN
from workers.config import RewardConfig
from workers.reward_pool import RewardPool
from workers.reward_worker import limits_of

EXAMPLE = """write for instance --row '{"level": 3}'"""


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    given = _parser().parse_args(argv)
    try:
        config = RewardConfig(
            function=given.function,
            convention=Convention(given.convention),
            arguments=_arguments(given.argument),
            timeout_s=given.timeout_s,
        )
        items = [_item(number, text, given) for number, text in enumerate(given.response)]
        return _judge(config, items)
    except (RewardError, ConfigError) as mistake:
        print(f"heliostat: {mistake}", file=sys.stderr)
        return 2


def _judge(config: RewardConfig, items: Sequence[Item]) -> int:
    [spec] = reward_specs(config)
    check_columns(spec, items[0].row)
    with closing(RewardPool([spec], limits_of(config), processes=1)) as pool:
        begun = time.perf_counter()
        judgements = pool.judge(0, items).result()
        taken_ms = (time.perf_counter() - begun) * 1000 / len(items)
        print(f"{config.function} is called as {called(config.convention, pool.convention(0))}")
    for item, judgement in zip(items, judgements, strict=True):
        print(f"{item.response!r:.60}: {told(judgement)}")
    print(f"{taken_ms:.1f} ms a response")
    return 0 if all(isinstance(judgement, Score) for judgement in judgements) else 1


def called(named: Convention, convention: Convention) -> str:
    """
    >>> called(Convention.AUTO, Convention.VERL), called(Convention.VERL, Convention.VERL)
    ('verl does it, as its parameters say (--convention names another)', 'verl does it')
    """
    if convention not in FOREIGN:
        return f"{convention.value}"
    seen = ", as its parameters say (--convention names another)" if named is Convention.AUTO else ""
    return f"{convention.value} does it{seen}"


def told(judgement: Judgement) -> str:
    """
    >>> told(Score(total=1.1, parts={"correct": 1.0, "brief": 0.1}))
    'score 1.1   correct 1   brief 0.1'
    >>> told(Score(total=1.0, parts={"exact": 1.0}))
    'score 1   exact 1'
    """
    if isinstance(judgement, Score):
        return "   ".join([f"score {judgement.total:g}", *(f"{part} {own:g}" for part, own in judgement.parts.items())])
    return f"no score ({judgement.kind.value})\n{judgement.reason}"


def _item(number: int, response: str, given: argparse.Namespace) -> Item:
    return Item(
        id=f"{number}",
        response=response,
        answer=given.answer,
        prompt=given.prompt,
        messages=({"role": "user", "content": given.prompt},),
        from_text=True,
        token_ids=(),
        row=_row(given.row),
    )


def _row(text: str) -> dict[str, object]:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise RewardError(f"--row is {text!r}, which is no JSON ({error}); {EXAMPLE}") from None
    if not isinstance(row, dict):
        raise RewardError(f"--row is {text!r}, which is no object; {EXAMPLE}")
    return row


def _arguments(texts: Sequence[str]) -> dict[str, object]:
    """Read as a run reads its settings."""
    for text in texts:
        name, equals, _ = text.partition("=")
        if not equals or not name.isidentifier():
            raise RewardError(f"--argument is {text!r}; write name=value, as reward.arguments.name=value in a run")
    return load_config([f"reward.arguments.{text}" for text in texts]).reward.arguments if texts else {}


def _parser() -> argparse.ArgumentParser:
    title, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m engine.reward",
        description=title,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("function", help="path/to/file.py:name or package.module:name")
    parser.add_argument("--response", action="append", required=True, help="a text to judge; give it several times")
    parser.add_argument("--answer", default="", help="the right answer, as a data row has it")
    parser.add_argument("--prompt", default="", help="what was asked")
    parser.add_argument("--row", default="{}", help="the other columns of the data row, as JSON")
    parser.add_argument("--argument", action="append", default=[], help="name=value, as in reward.arguments")
    parser.add_argument("--convention", default="auto", choices=[convention.value for convention in Convention])
    parser.add_argument("--timeout-s", type=float, default=10.0, help="for one response")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
