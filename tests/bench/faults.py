"""Runs of which somebody is killed, or that are asked to stop, again and again: is anything lost?

    python -m tests.bench.faults                                    # a few kills and a few stops
    python -m tests.bench.faults --part kills --trials 40 --seed 3 --add-to tests/bench/faults.json
    python -m tests.bench.faults --part kills --engine vllm --trials 10 --add-to tests/bench/faults.json
    python -m tests.bench.faults --part stops --trials 20 --json stops.json
    python -m tests.bench.faults --part soak --minutes 30

kills   SIGKILL at named points of every role (workers/crash_points.py) and, in every second run, at random moments to
        random roles; several a run. A kill counts when its witness is there: the process wrote down that it dies, or
        was seen alive and then dead. At its end each run is compared with one that nobody disturbed: weights, ledger,
        tokens, metrics. Detected: from the kill to the line that tells of a death, or to the worker in its place.
stops   SIGTERM or Ctrl-C, of every run one in each phase (PHASES); after each the same command again, at last to its
        end. Each must end within its grace, with the signal's exit code, and the run must end as the undisturbed one.
soak    one long run, a fault every 20 seconds: are memory, processes, open files and speed what they were?

A nano policy; `--engine hf` decodes with transformers, which is there in a second. Slices add to one JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from tests.bench._disturbed import STEP, Disturbed, Line, differences, draws, kill, start
from tests.bench._output import tell
from workers.crash_points import CRASHES_ENV

ROLES = {
    "policy 0": ("look", "credit", "update", "publish", "save"),
    "rollout 0": ("generate", "load_weights"),
    "reward 0": ("score",),
    "reference 0": ("reference_outputs",),
    "driver": ("generate", "reference", "credit", "update", "publish", "measure", "save"),
}
"""Phases of each role; each is a point at its begin and one at its end."""
COMMIT_POINTS = tuple(f"driver/commit/{what}" for what in ("seal", "rename", "retire"))
KILLS_A_RUN, STEPS_A_KILL = 10, 3
SETTINGS = (
    "run.save_every_steps=2", "run.keep_rollouts_every_steps=1", "run.max_restarts=100", "cluster.worker_restarts=100",
    "evaluation.prompts=8", "evaluation.every_steps=4", "rollout.prompts_per_step=4", "rollout.responses_per_prompt=4",
    "algo.correction.weight=none",
)  # fmt: skip
PATIENCE_S = 900.0
SLOW_S = 5.0
"""To notice a death: what the run said meanwhile is then shown."""
AT_START = ("import", "start")
AT_POINTS = {
    "generate": "driver/generate/begin", "judge": "reward 0/score/begin", "update": "policy 0/update/begin",
    "measure": "driver/measure/begin", "save": "driver/save/begin", "commit": "driver/commit/rename",
}  # fmt: skip
PHASES = (*AT_START, *AT_POINTS)
"""When a run is asked to stop: while it imports, while Ray and the workers start, or at these points."""
STOPPED_WITHIN_S = 0.05
"""Of such a point, at random."""
GRACE_S = 30.0
SOAK_FAULT_EVERY_S = 20.0


@dataclass(slots=True, kw_only=True)
class Kills:
    """What came of them."""

    engine: str
    trials: int = 0
    witnessed: int = 0
    equal: int = 0
    """Of those witnessed: in runs that ended as the undisturbed one."""
    lost: int = 0
    duplicated: int = 0
    """Responses that were learned from less, or more often, than in the undisturbed run."""
    left_over: int = 0
    runs: int = 0
    unequal: list[str] = field(default_factory=list)
    detect_s: list[float] = field(default_factory=list)
    recover_s: list[float] = field(default_factory=list)
    """From the kill to the next step that is done."""
    by_point: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, kw_only=True)
class Stops:
    """What came of asking runs to stop."""

    trials: int = 0
    in_time: int = 0
    right_code: int = 0
    left_over: int = 0
    runs: int = 0
    equal_runs: int = 0
    unequal: list[str] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    by_phase: Counter[str] = field(default_factory=Counter)


# ------------------------------------------------------------------ kills


def kills(engine: str, trials: int, *, seed: int, folder: Path) -> Kills:
    found, chance = Kills(engine=engine), random.Random(seed)
    steps = KILLS_A_RUN * STEPS_A_KILL + 3
    settings = (*SETTINGS, f"rollout.engine={engine}", f"run.steps={steps}")
    whole = start(settings, folder=folder, name="whole")
    if whole.wait(timeout_s=PATIENCE_S):
        raise SystemExit(f"the undisturbed run failed:\n{whole.output}")
    while found.trials < trials:
        number = found.runs
        wanted = min(KILLS_A_RUN, trials - found.trials)
        name = f"kills_{number}"
        if number % 2:
            run, times = _killed_at_random(settings, wanted, chance, folder=folder, name=name)
        else:
            run, times = _killed_at_points(settings, wanted, chance, folder=folder, name=name)
        found.trials += wanted
        found.runs += 1
        _judge(found, run, times, whole.folder, engine=engine)
        _say(f"{name}: {len(times)} of {wanted} witnessed, {found.equal}/{found.witnessed} equal so far")
        shutil.rmtree(run.folder)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """One that was witnessed."""

    point: str
    at_s: float


def points_of(role: str) -> list[str]:
    named = [f"{role}/{phase}/{side}" for phase in ROLES[role] for side in ("begin", "end")]
    return [*named, *COMMIT_POINTS] if role == "driver" else named


def _point(chance: random.Random) -> str:
    """Every role as often as another."""
    return chance.choice(points_of(chance.choice(list(ROLES))))


def _killed_at_points(
    settings: Sequence[str], wanted: int, chance: random.Random, *, folder: Path, name: str
) -> tuple[Disturbed, list[Death]]:
    plan = folder / f"{name}.json"
    deaths = [{"point": _point(chance), "skip": chance.randrange(2), "dies": True} for _ in range(wanted)]
    plan.write_text(json.dumps(deaths))
    run = start(settings, folder=folder, name=name, environment={CRASHES_ENV: str(plan)})
    run.wait(timeout_s=PATIENCE_S)
    witnesses = [json.loads(file.read_text()) for file in sorted(folder.glob(f"{plan.name}.*"))]
    return run, [Death(point=one["point"], at_s=one["at_s"]) for one in witnesses]


def _killed_at_random(
    settings: Sequence[str], wanted: int, chance: random.Random, *, folder: Path, name: str
) -> tuple[Disturbed, list[Death]]:
    """Any role, at any moment from the first second on; the next one when a step was done since."""
    run, deaths = start(settings, folder=folder, name=name), []
    while len(deaths) < wanted and run.process.poll() is None:
        time.sleep(chance.uniform(0.0, 1.5))
        role = chance.choice(list(ROLES))
        victim = run.driver if role == "driver" else run.worker(role.replace(" ", "_"))
        if victim is None or not kill(victim):
            continue
        deaths.append(Death(point=f"{role}/random", at_s=time.time()))
        done = len([line for line in run.lines if STEP.search(line.text)])
        while run.process.poll() is None and len([line for line in run.lines if STEP.search(line.text)]) == done:
            time.sleep(0.05)
    run.wait(timeout_s=PATIENCE_S)
    return run, deaths


def _judge(found: Kills, run: Disturbed, deaths: Sequence[Death], whole: Path, *, engine: str) -> None:
    found.left_over += len(run.left_over())
    found.witnessed += len(deaths)
    found.by_point.update(death.point for death in deaths)
    parted = [f"exit code {run.process.returncode}: {run.output[-2000:]}"] if run.process.returncode else []
    parted = parted or differences(whole, run.folder, engine=engine)
    if parted:
        found.unequal.append(f"{[death.point for death in deaths]}: {parted}")
    else:
        found.equal += len(deaths)
    ledger, expected = Counter(draws(run.folder)), Counter(draws(whole))
    found.lost += (expected - ledger).total()
    found.duplicated += (ledger - expected).total()
    for death in deaths:
        later = [line for line in run.lines if line.at_s >= death.at_s]
        done = [line.at_s for line in later if STEP.search(line.text)]
        found.recover_s += [done[0] - death.at_s] if done else []
        noticed_s = min([*_told(later, death), *_replaced(run, death)], default=None)
        if noticed_s is None:  # its role ends with it: nobody asked for it any more
            continue
        found.detect_s.append(noticed_s)
        if noticed_s > SLOW_S:
            _say(f"{death.point} at {death.at_s:.1f}: noticed after {noticed_s:.1f} s")
            for line in later:
                if line.at_s < death.at_s + noticed_s + 1.0:
                    _say(f"    {line.at_s - death.at_s:6.2f} s {line.text[:200]}")


def _told(later: Sequence[Line], death: Death) -> list[float]:
    """By the run, or by Ray, which asks the worker's replacement again."""
    marks = (
        "was killed by",
        " died while ",
        " died and was replaced",
        "A worker died or was killed",
        "so the task will be retried",
    )
    return [line.at_s - death.at_s for line in later if any(mark in line.text for mark in marks)]


def _replaced(run: Disturbed, death: Death) -> list[float]:
    """A worker that was idle: when Ray began a process in its place, or one that was ready took its name."""
    born = run.births.get(death.point.partition("/")[0].replace(" ", "_"), {})
    came = [began_s if began_s > death.at_s else named_s for began_s, named_s in born.items()]
    return [at_s - death.at_s for at_s in came if at_s > death.at_s]


# ------------------------------------------------------------------ stops


def stops(engine: str, trials: int, *, seed: int, folder: Path) -> Stops:
    found, chance = Stops(), random.Random(seed)
    settings = (*SETTINGS, f"rollout.engine={engine}", "run.steps=20", f"run.grace_s={GRACE_S:g}")
    began_s = time.time()
    whole = start(settings, folder=folder, name="whole")
    if whole.wait(timeout_s=PATIENCE_S):
        raise SystemExit(f"the undisturbed run failed:\n{whole.output}")
    imported_s, started_s = (
        next(line.at_s for line in whole.lines if mark in line.text) for mark in ("starting Ray", "everybody is ready")
    )
    took_s = {"import": imported_s - began_s, "start": started_s - imported_s}
    while found.trials < trials:
        name = f"stops_{found.runs}"
        for phase in chance.sample(PHASES, len(PHASES)):
            run = _in_phase(phase, settings, chance, took_s, folder=folder, name=name)
            _stop(run, chance.choice((signal.SIGTERM, signal.SIGINT)), phase, found)
        run = start(settings, folder=folder, name=name)
        if run.wait(timeout_s=PATIENCE_S):
            raise SystemExit(f"it did not go on to its end:\n{run.output}")
        found.left_over += len(run.left_over())
        found.runs += 1
        told = differences(whole.folder, run.folder, engine=engine)
        found.unequal += told
        found.equal_runs += not told
        _say(f"{name}: {found.trials} stops so far, {found.equal_runs} of {found.runs} runs equal")
        shutil.rmtree(run.folder)
    return found


def _in_phase(
    phase: str, settings: Sequence[str], chance: random.Random, took_s: dict[str, float], *, folder: Path, name: str
) -> Disturbed:
    """A run that goes on from where it stands, as soon as it is in that phase. `took_s`: the first ones alone."""
    plan = folder / f"{name}_{phase}.json"
    points = [AT_POINTS[phase]] if phase in AT_POINTS else []
    plan.write_text(json.dumps([{"point": point, "skip": chance.randrange(2), "dies": False} for point in points]))
    run = start(settings, folder=folder, name=name, environment={CRASHES_ENV: str(plan)})
    if phase in AT_POINTS:
        run.until(Path(f"{plan}.0").exists, timeout_s=PATIENCE_S)
        time.sleep(chance.uniform(0.0, STOPPED_WITHIN_S))
        return run
    if phase == "start":
        run.until(partial(run.has_said, "starting Ray"), timeout_s=PATIENCE_S)
    time.sleep(chance.uniform(0.0, took_s[phase]))
    return run


def _stop(run: Disturbed, number: signal.Signals, phase: str, found: Stops) -> None:
    began = time.monotonic()
    run.process.send_signal(number)
    code = run.wait(timeout_s=PATIENCE_S)
    took_s = time.monotonic() - began
    found.left_over += len(run.left_over())
    found.trials += 1
    found.took_s.append(took_s)
    found.in_time += took_s < GRACE_S
    # Before the command has looked at its first line, Python dies of the signal itself: the same to a shell.
    is_right = code in (128 + number, -number)
    found.right_code += is_right
    found.by_phase[phase] += 1
    if not is_right:
        _say(f"exit code {code} after {number.name} in {phase}:\n{run.output[-2000:]}")


# ------------------------------------------------------------------ soak


def soak(*, minutes: float, seed: int, folder: Path) -> dict[str, object]:
    """Faults in turn: a reward worker, an engine, a reference killed; a worker stopped for 3 s."""
    chance, ends = random.Random(seed), time.monotonic() + 60 * minutes
    settings = (*SETTINGS, "rollout.engine=hf", "run.steps=1000000", "run.keep_rollouts_every_steps=0")
    run = start((*settings, "evaluation.prompts=0", "run.save_every_steps=50"), folder=folder, name="soak")
    seen: dict[str, list[tuple[float, float, int, int]]] = {}
    faults: Counter[str] = Counter()
    next_fault = time.monotonic() + 2 * SOAK_FAULT_EVERY_S
    while time.monotonic() < ends and run.process.poll() is None:
        time.sleep(2.0)
        for name, process in _members(run):
            try:
                size = process.memory_info().rss / 2**20
                seen.setdefault(f"{name}/{process.pid}", []).append(
                    (time.time(), size, process.num_fds(), process.num_threads())
                )
            except psutil.Error:
                continue
        if time.monotonic() > next_fault and run.steps_done():
            next_fault += SOAK_FAULT_EVERY_S
            faults[_fault(run, chance)] += 1
    run.process.terminate()
    code = run.wait(timeout_s=PATIENCE_S)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    times_s = np.array([row["time/step_s"] for row in rows if "time/step_s" in row])
    third = len(times_s) // 3
    return {
        "minutes": minutes, "steps": len(times_s), "faults": dict(faults), "exit_code": code,
        "left_over": len(run.left_over()), "one_row_a_step": len({row["step"] for row in rows}) == len(rows),
        "median_step_s_first_third": float(np.median(times_s[:third])),
        "median_step_s_last_third": float(np.median(times_s[-third:])),
        "reward_last_third": float(np.mean([row["reward/mean"] for row in rows[-third:]])),
        "processes": {name: _trend(points) for name, points in seen.items() if points[-1][0] - points[0][0] > 90},
    }  # fmt: skip


def _members(run: Disturbed) -> Iterator[tuple[str, psutil.Process]]:
    for name in ("driver", *(role.replace(" ", "_") for role in ROLES if role != "driver")):
        process = run.driver if name == "driver" else run.worker(name)
        if process is not None:
            yield name, process


def _fault(run: Disturbed, chance: random.Random) -> str:
    what = chance.choice(("reward_0", "rollout_0", "reference_0", "stopped"))
    victim = run.worker(what if what != "stopped" else chance.choice(("policy_0", "rollout_0", "reward_0")))
    if victim is None:
        return "void"
    if what == "stopped":
        kill(victim, signal.SIGSTOP)
        time.sleep(3.0)
        kill(victim, signal.SIGCONT)
    else:
        kill(victim)
    return what


def _trend(points: Sequence[tuple[float, float, int, int]]) -> dict[str, float]:
    """After the first minute."""
    at_s, size, fds, threads = np.array([point for point in points if point[0] - points[0][0] > 60]).T
    slope = np.polyfit((at_s - at_s[0]) / 60, size, 1)[0] if len(at_s) > 2 else 0.0
    return {
        "minutes": float((at_s[-1] - at_s[0]) / 60), "rss_mib": float(size[-1]), "mib_per_minute": float(slope),
        "fds_first": float(fds[0]), "fds_last": float(fds[-1]),
        "threads_first": float(threads[0]), "threads_last": float(threads[-1]),
    }  # fmt: skip


# ------------------------------------------------------------------ telling


def quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else float("nan")


def _plain(found: Kills | Stops) -> dict[str, object]:
    """For JSON: asdict makes pairs of a Counter's keys."""
    return {
        name: dict(value) if isinstance(value, Counter) else value
        for name, value in ((one.name, getattr(found, one.name)) for one in fields(found))
    }


def told_kills(found: Kills) -> dict[str, object]:
    return _plain(found) | {
        "detect_p50_s": quantile(found.detect_s, 0.5), "detect_p99_s": quantile(found.detect_s, 0.99),
        "recover_p50_s": quantile(found.recover_s, 0.5), "recover_p99_s": quantile(found.recover_s, 0.99),
    }  # fmt: skip


def merged_kills(slices: Sequence[dict[str, object]]) -> list[Kills]:
    """One for each engine."""
    all_of: dict[str, Kills] = {}
    for one in slices:
        whole = all_of.setdefault(str(one["engine"]), Kills(engine=str(one["engine"])))
        for name in ("trials", "witnessed", "equal", "lost", "duplicated", "left_over", "runs"):
            setattr(whole, name, getattr(whole, name) + one[name])
        for name in ("unequal", "detect_s", "recover_s"):
            getattr(whole, name).extend(one[name])
        whole.by_point.update(one["by_point"])
    return list(all_of.values())


def show(measured: dict[str, list[dict[str, object]]]) -> None:
    console = Console()
    columns = ("trials", "witnessed", "equal", "lost", "duplicated", "left_over", "detect_p50_s", "detect_p99_s")
    columns += ("recover_p50_s", "recover_p99_s")
    table = Table("kills", *(name.replace("_", " ") for name in columns))
    for found in merged_kills(measured.get("kills", [])):
        told = told_kills(found)
        forms = [".2f" if name.endswith("_s") else "" for name in columns]
        table.add_row(found.engine, *(f"{told[name]:{form}}" for name, form in zip(columns, forms, strict=True)))
    if table.row_count:
        console.print(table)
    for one in measured.get("stops", []):
        took = one["took_s"]
        console.print(
            f"stops: {one['trials']}, with the right exit code {one['right_code']}, in time {one['in_time']} "
            f"(median {quantile(took, 0.5):.1f} s, longest {max(took, default=0):.1f} s), left over "
            f"{one['left_over']}; {one['equal_runs']} of {one['runs']} runs equal; {one['by_phase']}"
        )
    for one in measured.get("soak", []):
        console.print_json(json.dumps(one))


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("kills", "stops", "soak"), action="append")
    parser.add_argument("--engine", choices=("hf", "vllm"), default="hf")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--json", nargs="?", const="-")
    parser.add_argument("--add-to", type=Path, help="a JSON file that this slice is added to")
    asked = parser.parse_args()
    measured: dict[str, list[dict[str, object]]] = {}
    if asked.add_to and asked.add_to.exists():
        measured = json.loads(asked.add_to.read_text())
    with tempfile.TemporaryDirectory() as place:
        make: dict[str, Callable[[Path], dict[str, object]]] = {
            "kills": lambda folder: told_kills(kills(asked.engine, asked.trials, seed=asked.seed, folder=folder)),
            "stops": lambda folder: _plain(stops(asked.engine, asked.trials, seed=asked.seed, folder=folder)),
            "soak": lambda folder: soak(minutes=asked.minutes, seed=asked.seed, folder=folder),
        }
        for part in asked.part or ("kills", "stops"):
            folder = Path(place) / part
            folder.mkdir()
            measured.setdefault(part, []).append({"seed": asked.seed} | make[part](folder))
    if asked.add_to:
        asked.add_to.write_text(json.dumps(measured, indent=1) + "\n")
    tell(measured, asked.json, lambda: show(measured))


if __name__ == "__main__":
    main()
