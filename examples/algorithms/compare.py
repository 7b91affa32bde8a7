"""Every algorithm on the policy and the data of the default run, in as many steps, each beside its control.

python examples/algorithms/compare.py                                # all of them: about an hour on two cores
python examples/algorithms/compare.py --algorithms grpo,ppo          # these rows again
python examples/algorithms/compare.py --clipping                     # what bounds do between four updates
python examples/algorithms/compare.py --critic                       # what PPO's critic gets to know
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.config import ConfigError, load_config
from examples.algorithms import clipping, critic
from examples.algorithms.runs import REPOSITORY, Run, read_json, write_json
from examples.draw_curve import BLUE, GREY, LEFT, ORANGE, Frame, svg

HERE = Path(__file__).resolve().parent
RUNS = REPOSITORY / "runs" / "algorithms"
ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "grpo": (),
    "dr_grpo": (),
    "dapo": (),
    "rloo": (),
    "reinforce_pp": (),
    "reinforce_pp_baseline": (),
    "remax": (),
    "gspo": (),
    "cispo": (),
    "ppo": (),
}
"""What is typed besides algo=<name>: each runs as it is shipped."""
EXTRAS = {"clipping": clipping, "critic": critic}
CONTROLS = "examples.algorithms.shuffled"
MEASURED = "evaluation.every_steps=10"
MARKS = ("<!-- written by compare.py -->", "<!-- up to here -->")
COLUMNS = ("algorithm", "start", "final", "greedy", "of the best", "control", "minutes")

Results = dict[str, dict[str, Any]]
"""results.json: one row an algorithm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command was told."""

    algorithms: tuple[str, ...]
    settings: tuple[str, ...]
    """For every run."""
    folder: Path
    """Of the runs; relative to the repository where it is inside, because the commands are kept and hold elsewhere."""
    results: Path
    extra: str
    """One of EXTRAS; empty for the rows."""
    list: bool
    draw: bool


def main(argv: Sequence[str]) -> None:
    # Rich takes a pipe for 80 columns, which would break the table.
    asked, console = parsed(argv), Console(width=None if sys.stdout.isatty() else 110)
    if asked.list:
        for run in planned(asked):
            console.print(shlex.join(["python", "-m", "engine.main", *run.typed]), soft_wrap=True, highlight=False)
    elif asked.extra:
        EXTRAS[asked.extra].compare(asked.folder, asked.settings, asked.results, console)
    else:
        done = list(asked.algorithms) if asked.draw else []
        try:
            for name in () if asked.draw else asked.algorithms:
                compare(name, asked, console)
                done.append(name)
        finally:
            # Not row by row: a file of the repository that changes would make the next run's commit a dirty one.
            rows = collect(done, asked)
        console.print(table(rows))


def parsed(argv: Sequence[str]) -> Asked:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", type=_names, metavar="NAME,NAME", default=tuple(ALGORITHMS), help="rows to run")
    extra = parser.add_mutually_exclusive_group()
    for name, module in EXTRAS.items():
        summary = module.__doc__.partition("\n")[0]
        extra.add_argument(f"--{name}", dest="extra", action="store_const", const=name, help=summary)
    parser.add_argument("--steps", type=int, help="default: those of the default run")
    parser.add_argument("--results", type=Path, help="default: results.json beside this file")
    parser.add_argument("--folder", type=Path, default=RUNS, help="of the runs (default: runs/algorithms)")
    parser.add_argument("--list", action="store_true", help="print the runs' commands, and run nothing")
    parser.add_argument("--draw", action="store_true", help="collect the rows in --folder, and run nothing")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of every run")
    told = parser.parse_args(argv)
    folder = told.folder.absolute()
    return Asked(
        algorithms=told.algorithms,
        settings=(*([f"run.steps={told.steps}"] if told.steps else []), *told.settings),
        folder=folder.relative_to(REPOSITORY) if folder.is_relative_to(REPOSITORY) else folder,
        results=told.results or HERE / f"{told.extra or 'results'}.json",
        extra=told.extra or "",
        list=told.list,
        draw=told.draw,
    )


def _names(text: str) -> tuple[str, ...]:
    unknown = set(text.split(",")) - set(ALGORITHMS)
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: the rows are {', '.join(ALGORITHMS)}")
    return tuple(text.split(","))


# ----------------------------------------------------------------------------- the runs


def planned(asked: Asked) -> Iterator[Run]:
    """Every run of a command, in order."""
    if asked.extra:
        yield from EXTRAS[asked.extra].planned(asked.folder, asked.settings)
        return
    for name in asked.algorithms:
        yield from pair(name, asked)


def pair(name: str, asked: Asked) -> tuple[Run, Run]:
    """An algorithm and its control: the same class, on rewards that say nothing."""
    typed = (f"algo={name}", *ALGORITHMS[name], MEASURED, *asked.settings)
    shuffled = f"algo._target_={CONTROLS}.Shuffled{type(load_config(typed).algo).__name__}"
    return (
        Run(name=name, overrides=typed, folder=asked.folder),
        Run(name=f"{name}-control", overrides=(*typed, shuffled), folder=asked.folder),
    )


def compare(name: str, asked: Asked, console: Console) -> None:
    """Run an algorithm and its control, and write its row into their folder."""
    run, control = (run.do() for run in pair(name, asked))
    row = {
        "start": run.summary["held_out_before"],
        "final": run.summary["held_out_after"],
        "control_final": control.summary["held_out_after"],
        "steps": run.summary["steps"],
        "again": shlex.join(["python", "examples/algorithms/compare.py", "--algorithms", name, *asked.settings]),
        "run": run.record(),
        "control": control.record(),
    }
    write_json(row_of(name, asked), row)
    console.print(
        f"{name}: {row['start']:.3f} -> {row['final']:.3f}, its control -> {row['control_final']:.3f}", highlight=False
    )


def row_of(name: str, asked: Asked) -> Path:
    return REPOSITORY / asked.folder / f"{name}.json"


def collect(names: Sequence[str], asked: Asked) -> Results:
    """Bring these rows of the runs' folder into the results and the picture; the others stay as they were."""
    known = read_json(asked.results) | {name: row for name in names if (row := read_json(row_of(name, asked)))}
    rows = {name: known[name] for name in ALGORITHMS if name in known}
    if rows:
        write_json(asked.results, rows)
        asked.results.with_name("curves.svg").write_text(picture(rows))
        readme = HERE / "README.md"
        if asked.results.parent == HERE:
            readme.write_text(with_section(readme.read_text(), markdown(rows)))
    return rows


# ----------------------------------------------------------------------------- what is shown of them


def cells(rows: Results) -> Iterator[tuple[str, ...]]:
    """One row a line, as COLUMNS says."""
    best = max((row["final"] for row in rows.values()), default=0.0)
    for name, row in rows.items():
        run, control = row["run"], row["control"]
        yield (
            name,
            f"{row['start']:.3f} +- {run['start_standard_error']:.3f}",
            f"{row['final']:.3f} +- {run['final_standard_error']:.3f}",
            f"{run['final_greedy']:.3f}",
            f"{row['final'] / best:.2f}" if best else "",
            f"{row['control_final']:.3f} +- {control['final_standard_error']:.3f}",
            f"{run['wall_s'] / 60:.1f}",
        )


def table(rows: Results) -> Table:
    shown = Table(*COLUMNS, box=box.SIMPLE_HEAD)
    for line in cells(rows):
        shown.add_row(*line)
    return shown


def markdown(rows: Results) -> str:
    lines = [COLUMNS, ("---",) * len(COLUMNS), *cells(rows)]
    drawn = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*drawn, "", *remarks(rows)]).rstrip()


def remarks(rows: Results) -> Iterator[str]:
    """What three of the algorithms have that the others do not."""
    figures = {name: row["run"]["figures"] for name, row in rows.items()}
    if "remax" in rows:
        greedy = figures["remax"]["reward/greedy_responses"]
        yield f"- ReMax: {greedy['min']:.0f} to {greedy['max']:.0f} greedy responses in each step."
    if "dapo" in rows:
        uniform = figures["dapo"]["reward/uniform_groups_share"]
        others = figures.get("grpo", {}).get("reward/uniform_groups_share", {}).get("mean")
        than = "" if others is None else f" (GRPO: {others:.2f} in the mean)"
        yield f"- DAPO: at most {uniform['max']:.2f} of a batch's groups have equal scores{than}."
    if "ppo" in rows:
        loss, explained = (figures["ppo"][f"critic/{name}"] for name in ("value_loss", "explained_variance"))
        yield (
            f"- PPO: from the first fifth of the steps to the last, the value loss goes from {loss['first_fifth']:.3f} "
            f"to {loss['last_fifth']:.3f}, and the variance that the critic explains from "
            f"{explained['first_fifth']:.2f} to {explained['last_fifth']:.2f}."
        )


def with_section(page: str, section: str) -> str:
    """The page with another text between its marks."""
    before, _, rest = page.partition(MARKS[0])
    return f"{before}{MARKS[0]}\n\n{section}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"


WIDTH, HEIGHT, ACROSS = 430, 190, 2
"""Of one algorithm's picture, and how many stand side by side."""


def picture(rows: Results) -> str:
    """One curve an algorithm, with its control in grey, all on the same scales."""
    last = max(row["steps"] for row in rows.values())
    parts = []
    for number, (name, row) in enumerate(rows.items()):
        x, y = WIDTH * (number % ACROSS), HEIGHT * (number // ACROSS)
        frame = Frame(width=WIDTH, height=HEIGHT, last=last, top=1.0)
        run, control = (metrics_of(row[which]) for which in ("run", "control"))
        drawn = [frame.grid(), frame.rollouts(control, GREY), frame.held_out(control, GREY)]
        drawn += [frame.rollouts(run, BLUE), frame.held_out(run, ORANGE)]
        drawn.append(f'<text x="{LEFT}" y="{frame.bottom + 20}" font-size="14" font-weight="bold">{name}</text>')
        parts.append(f'<g transform="translate({x} {y})">{"".join(drawn)}</g>')
    height = HEIGHT * -(-len(rows) // ACROSS) + 24
    legend = f"{last} steps; blue: mean score of the step's rollouts; orange: held out; grey: the control"
    parts.append(f'<text x="{LEFT}" y="{height - 16}">{legend}</text>')
    return svg(WIDTH * ACROSS, height, "".join(parts))


def metrics_of(record: Mapping[str, Any]) -> list[dict[str, float]]:
    """A run's curve as lines of metrics.jsonl."""
    steps = [{"step": number, "reward/mean": mean} for number, mean in enumerate(record["rewards"], start=1)]
    held_out = [
        {"step": one["step"], "held_out/sampled": one["sampled"], "held_out/standard_error": one["standard_error"]}
        for one in record["held_out"]
    ]
    return [*steps, *held_out]


if __name__ == "__main__":
    # A polite kill ends the run that is on as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except ConfigError as mistake:
        sys.exit(f"compare.py: {mistake}")
