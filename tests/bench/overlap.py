"""What it gains to decode, judge and learn at the same time, and what it costs.

    python -m tests.bench.overlap                          # tables, about 5 minutes
    python -m tests.bench.overlap --json overlap.json      # the same as JSON; --json alone prints it
    python -m tests.bench.overlap --part tail --svg overlap.svg

The real loop, ledger, stream, rollout workers, reward workers and Ray, around engines and trainers that sleep
(`tests/bench/_stub_team.py`): an engine takes the same time for a step however many responses run, up to as many as a
step of training needs. `one_off`: how much of the shorter of generating and learning is hidden. `tail`: steps by
lengths alone, learning takes next to nothing. `rewards`: a reward that sleeps. `real`: the nano model, vLLM and
DeepSpeed, a thread each. The first two steps of each run are left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from engine.config import load_config
from engine.origin import git_version
from engine.tasks import prepare_online
from tests.bench._forced_lengths import lognormal
from tests.bench._output import tell
from tests.bench._runs import rows_of_run
from tests.bench._stub_models import EngineTold, Plan, Stretch
from tests.bench._stub_team import quiet_settings, run_loop, stub_team, told
from tests.bench._timeline import Bar, Panel, svg
from workers.config import ClusterConfig
from workers.placement import Place, connected
from workers.team import Workers

PROMPTS, RESPONSES, WARM_UP_STEPS = 8, 4, 2
DECODE_STEP_S, MOST_TOKENS, SIGMA = 0.004, 128, 0.8
TRACES: dict[str, float | None] = {"all 64": None, "lognormal, 2% cut": 0.02, "lognormal, 20% cut": 0.20}
JUDGED_PROMPTS, PROCESSES, SLEPT_S = 16, 16, 0.1
SLOW_REWARD = "tests/bench/_slow_reward.py:slow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A run of a stub team: medians are over the steps after the first ones."""

    step_s: float
    """The mean: a step that ends early leaves its work to the next."""
    generate_s: float
    """Of it, waiting for rollouts."""
    staleness_mean: float
    staleness_max: float
    mixed_share: float
    """Groups that several versions wrote."""
    trained_tokens: int
    decoded_tokens: int
    pauses_steps: tuple[float, ...]
    """That running responses waited when new weights came, in decoding steps, the step itself counted."""
    bars: tuple[Bar, ...]
    """From the end of the update before the steps that count."""
    marks_s: tuple[float, ...]
    """Where those steps end."""


def lengths_of(trace: str, *, draws: int) -> tuple[tuple[int, ...], ...]:
    """One a response; each run sees every one of them once."""
    clipped, count = TRACES[trace], draws * RESPONSES
    flat = [64] * count
    if clipped is not None:
        flat = lognormal(count, sigma=SIGMA, clipped=clipped, most=MOST_TOKENS, seed=0)
    return tuple(tuple(flat[at : at + RESPONSES]) for at in range(0, count, RESPONSES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """Sleeping models, and the settings that all of their runs share."""

    workers: Workers
    typed: tuple[str, ...]
    prompts: int

    def run(
        self, trace: str, *, staleness: int, steps: int, update_s: float, decode_step_s: float = DECODE_STEP_S,
        oversampling: float = 1.0,
    ) -> Ran:  # fmt: skip
        """The real loop."""
        plan = Plan(
            decode_step_s=decode_step_s,
            update_s=update_s,
            swap_s=decode_step_s,
            lengths=lengths_of(trace, draws=steps * self.prompts),
        )
        with tempfile.TemporaryDirectory() as folder:
            own = f"rollout.max_staleness={staleness}", f"rollout.oversampling={oversampling}"
            config = load_config([*self.typed, *own, f"run.folder={folder}", f"run.steps={steps}"])
            rows = run_loop(config, prepare_online(config), self.workers, plan)
        [engine], [updates] = told(self.workers.rollout), told(self.workers.policy)
        return _ran(plan, rows, engine, updates, running=self.prompts * RESPONSES)


@contextmanager
def team_of(prompts: int, *typed: str) -> Iterator[Team]:
    """In the cluster that this process is connected to."""
    quiet = quiet_settings(prompts=prompts, responses=RESPONSES)
    own = (*quiet, f"rollout.max_running={prompts * RESPONSES}", *typed)
    with tempfile.TemporaryDirectory() as logs, stub_team(load_config(own), Path(logs)) as workers:
        yield Team(workers=workers, typed=own, prompts=prompts)


def _ran(
    plan: Plan, rows: Sequence[dict[str, float]], engine: EngineTold, updates: Sequence[Stretch], *, running: int
) -> Ran:
    counted, zero = rows[WARM_UP_STEPS:], updates[WARM_UP_STEPS - 1].end_s
    return Ran(
        step_s=statistics.mean(row["time/step_s"] for row in counted),
        generate_s=statistics.mean(row["time/generate_s"] for row in counted),
        staleness_mean=statistics.mean(row["staleness/mean"] for row in counted),
        staleness_max=max(row["staleness/max"] for row in counted),
        mixed_share=statistics.mean(row["staleness/mixed_share"] for row in counted),
        trained_tokens=round(sum(row["response_length/mean"] for row in rows) * running),
        decoded_tokens=engine.decoded_tokens,
        pauses_steps=tuple(pause / plan.decode_step_s for pause in engine.pauses_s),
        bars=_bars(engine, updates, most=running, zero=zero),
        marks_s=tuple(own.end_s - zero for own in updates[WARM_UP_STEPS:]),
    )


def _bars(engine: EngineTold, updates: Sequence[Stretch], *, most: int, zero: float) -> tuple[Bar, ...]:
    """Decoding steps of as many responses without a break between them are one bar."""
    decoding: list[Bar] = []
    for start, end, running in engine.steps:
        bar = Bar(row="engine", what="decode", start_s=start - zero, end_s=end - zero, share=running / most)
        last = decoding[-1] if decoding else None
        if last and last.share == bar.share and bar.start_s - last.end_s < DECODE_STEP_S:
            bar = replace(bar, start_s=decoding.pop().start_s)
        decoding.append(bar)
    others = [
        Bar(row=row, what=own.what, start_s=own.start_s - zero, end_s=own.end_s - zero)
        for row, stretches in (("engine", engine.swaps), ("trainer", updates))
        for own in stretches
    ]
    return (*decoding, *others)


# ----------------------------------------------------------------------------- the parts


@dataclass(frozen=True, slots=True, kw_only=True)
class OneOff:
    """Generating and learning take about the same time."""

    trace: str
    staleness: int
    generate_s: float
    """Of a synchronous step."""
    learn_s: float
    synchronous_s: float
    step_s: float
    efficiency: float
    """(generate + learn - step) / the shorter of both."""
    speed_up: float
    staleness_mean: float


def one_off(steps: int) -> list[OneOff]:
    with team_of(PROMPTS) as team:
        return [_one_off(team, trace, steps) for trace in TRACES]


def _one_off(team: Team, trace: str, steps: int) -> OneOff:
    update_s = 64 * DECODE_STEP_S if TRACES[trace] is None else MOST_TOKENS * DECODE_STEP_S
    plain, ahead = (team.run(trace, staleness=own, steps=steps, update_s=update_s) for own in (0, 1))
    return compared(
        trace,
        generate_s=plain.generate_s,
        synchronous_s=plain.step_s,
        step_s=ahead.step_s,
        staleness_mean=ahead.staleness_mean,
    )


def compared(trace: str, *, generate_s: float, synchronous_s: float, step_s: float, staleness_mean: float) -> OneOff:
    """
    >>> found = compared("any", generate_s=2.0, synchronous_s=5.0, step_s=3.5, staleness_mean=1.0)
    >>> found.learn_s, found.efficiency, round(found.speed_up, 2)
    (3.0, 0.75, 1.43)
    """
    learn_s = synchronous_s - generate_s
    return OneOff(
        trace=trace,
        staleness=1,
        generate_s=generate_s,
        learn_s=learn_s,
        synchronous_s=synchronous_s,
        step_s=step_s,
        efficiency=(synchronous_s - step_s) / min(generate_s, learn_s),
        speed_up=synchronous_s / step_s,
        staleness_mean=staleness_mean,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """Steps whose learning takes next to nothing: what the longest response costs."""

    trace: str
    way: str
    step_s: float
    speed_up: float
    """Over the synchronous step."""
    discarded: int
    """Tokens that were decoded and not learned from."""
    staleness_mean: float
    staleness_max: float
    mixed_share: float
    pause_p50_steps: float | None
    pause_p99_steps: float | None
    length_bias: float
    """Mean length of what was learned from, over that of all that was asked for, minus 1."""


def tail(steps: int) -> list[Tail]:
    ways = (("synchronous", 0, 1.0), ("staleness 1", 1, 1.0), ("staleness 2", 2, 1.0), ("staleness 4", 4, 1.0),
            ("oversampling 1.5", 0, 1.5))  # fmt: skip
    found = []
    with team_of(PROMPTS) as team:
        for trace in list(TRACES)[1:]:
            asked = [length for draw in lengths_of(trace, draws=steps * PROMPTS) for length in draw]
            plain_s = None
            for way, staleness, oversampling in ways:
                ran = team.run(trace, staleness=staleness, steps=steps, update_s=0.002, oversampling=oversampling)
                plain_s, pauses = plain_s or ran.step_s, ran.pauses_steps
                found.append(
                    Tail(
                        trace=trace,
                        way=way,
                        step_s=ran.step_s,
                        speed_up=plain_s / ran.step_s,
                        discarded=ran.decoded_tokens - ran.trained_tokens,
                        staleness_mean=ran.staleness_mean,
                        staleness_max=ran.staleness_max,
                        mixed_share=ran.mixed_share,
                        pause_p50_steps=float(np.percentile(pauses, 50)) if pauses else None,
                        pause_p99_steps=float(np.percentile(pauses, 99)) if pauses else None,
                        length_bias=ran.trained_tokens / (steps * PROMPTS * RESPONSES) / float(np.mean(asked)) - 1.0,
                    )
                )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """A reward that sleeps."""

    trace: str
    staleness: int
    reward_s: float
    """Of all processes together, for a step."""
    step_s: float
    without_s: float
    hidden: float
    """1 - what the step takes longer / the reward's own time."""


def rewards(steps: int) -> list[Hidden]:
    """64 responses a step, 0.1 s for each, in 16 processes: 0.4 s, beside about a second of decoding."""
    cases = [(trace, staleness) for trace in ("all 64", "lognormal, 2% cut") for staleness in (0, 1, 2)]
    without, slow = (_judged(cases, steps=steps, slept_s=slept_s) for slept_s in (0.0, SLEPT_S))
    reward_s = JUDGED_PROMPTS * RESPONSES * SLEPT_S / PROCESSES
    return [
        Hidden(
            trace=trace,
            staleness=staleness,
            reward_s=reward_s,
            step_s=slow_s,
            without_s=without_s,
            hidden=1.0 - (slow_s - without_s) / reward_s,
        )
        for (trace, staleness), without_s, slow_s in zip(cases, without, slow, strict=True)
    ]


def _judged(cases: Sequence[tuple[str, int]], *, steps: int, slept_s: float) -> list[float]:
    """Seconds of a step of each case."""
    typed = (
        f"reward.function={SLOW_REWARD}", f"reward.arguments.seconds={slept_s}", f"reward.processes={PROCESSES}",
        "reward.isolation=worker",
    )  # fmt: skip
    with team_of(JUDGED_PROMPTS, *typed) as team:
        return [
            team.run(
                trace,
                staleness=staleness,
                steps=steps,
                update_s=0.3,
                decode_step_s=1.024 / (64 if TRACES[trace] is None else MOST_TOKENS),
            ).step_s
            for trace, staleness in cases
        ]


def real(steps: int) -> list[OneOff]:
    """nano with vLLM and DeepSpeed, one thread each, as runs of the command."""
    plain, ahead = (_real_rows(staleness, steps=steps) for staleness in (0, 1))
    return [
        compared(
            "nano",
            generate_s=statistics.median(row["time/generate_s"] for row in plain),
            synchronous_s=statistics.median(row["time/step_s"] for row in plain),
            step_s=statistics.median(row["time/step_s"] for row in ahead),
            staleness_mean=statistics.mean(row["staleness/mean"] for row in ahead),
        )
    ]


def _real_rows(staleness: int, *, steps: int) -> list[dict[str, float]]:
    typed = [
        f"run.steps={steps + WARM_UP_STEPS}", "run.save_every_steps=0", "evaluation.prompts=0",
        "cluster.threads_per_worker=1", f"rollout.max_staleness={staleness}",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return rows_of_run(typed, folder=Path(folder), name="real")[WARM_UP_STEPS:]


def timelines() -> str:
    """Three steps at staleness 0, 1 and 2, lognormal lengths, an update as long as half of the longest response."""
    panels = []
    with team_of(PROMPTS) as team:
        for staleness in (0, 1, 2):
            update_s = MOST_TOKENS * DECODE_STEP_S / 2
            ran = team.run("lognormal, 2% cut", staleness=staleness, steps=12, update_s=update_s)
            title = f"rollout.max_staleness={staleness}"
            panels.append(Panel(title=title, bars=ran.bars, marks_s=ran.marks_s[:3]))
    return svg(panels, seconds=max(panel.marks_s[-1] for panel in panels) * 1.02)


PARTS: dict[str, Callable[[int], Sequence[object]]] = {
    "one_off": one_off,
    "tail": tail,
    "rewards": rewards,
    "real": real,
}
STEPS = {"one_off": 12, "tail": 24, "rewards": 8, "real": 20}


def show(part: str, found: Sequence[object]) -> None:
    table = Table(title=part, title_justify="left")
    rows = [asdict(own) for own in found]
    for heading in rows[0]:
        table.add_column(heading.replace("_", " "), justify="left" if isinstance(rows[0][heading], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--part", choices=list(PARTS), help="one of them (default: all)")
    parser.add_argument("--steps", type=int, help="of each run (default: by part)")
    parser.add_argument("--svg", metavar="FILE", help="three steps at staleness 0, 1 and 2, as a picture")
    asked = parser.parse_args()
    names = [asked.part] if asked.part else list(PARTS)
    found: dict[str, Sequence[object]] = {}
    with connected(ClusterConfig(), [Place(role="everybody", index=0, cpus=4.0, gpus=0.0)]):
        for name in names:
            print(f"{name} ...", file=sys.stderr)
            found[name] = PARTS[name](asked.steps or STEPS[name])
        if asked.svg:
            Path(asked.svg).write_text(timelines())
    told_of = {
        "git": git_version(),
        "command": f"python -m tests.bench.overlap {' '.join(sys.argv[1:])}".strip(),
        "settings": {"prompts": PROMPTS, "responses": RESPONSES, "decode_step_s": DECODE_STEP_S, "sigma": SIGMA},
        **{name: [asdict(own) for own in rows] for name, rows in found.items()},
    }
    tell(told_of, asked.json, lambda: [show(name, rows) for name, rows in found.items()])


if __name__ == "__main__":
    main()
