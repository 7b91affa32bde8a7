"""How new weights reach the rollout engine: how fast, how much of them, and how long running requests wait.

    python -m tests.bench.sync                     # a table of each
    python -m tests.bench.sync --json sync.json    # the same as JSON; --json alone prints it
    python -m tests.bench.sync --case nano --part transfer --repeats 9

Real workers as a run starts them. `transfer`: from the end of an optimizer step to the first token under its weights,
taking turns with packing the same matrices alone (what vLLM must do before it can compute) and with copying as many
bytes; then the engine's answer is compared with that of a fresh engine that has read the exported model. `pause`:
weights change between two steps of an engine that is busy. `travel`: bytes of the second version, by tuning. `changed`:
how many bfloat16 weights an optimizer step of Adam changes. SmolLM2's folder is build/smollm2-135m, or
HELIOSTAT_SMOLLM2.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from engine.algorithms.sft import SFT
from engine.config import Config, load_config
from engine.offline import totals_of
from engine.origin import git_version
from tests.bench._output import tell
from tests.this_cpu import packs_bfloat16
from workers.config import WeightSwap
from workers.lessons import Example, Lesson, Part, Share
from workers.process_settings import process_settings

SMOLLM2 = os.environ.get("HELIOSTAT_SMOLLM2", "build/smollm2-135m")
SEED, TOKENS, ANSWER_TOKENS = 0, 48, 16
WARM_UP = 2
LEARNING_RATES = (1e-6, 1e-5, 1e-4)
ADAM_STEPS = 6
PARTS = ("transfer", "pause", "travel", "changed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    overrides: tuple[str, ...]
    parts: tuple[str, ...]


_SMOLLM2 = ("experiment=smollm2_sums", f"model.path={SMOLLM2}")
CASES = (
    Case(name="nano float32", overrides=(), parts=("transfer", "pause")),
    Case(name="smollm2 bfloat16", overrides=(*_SMOLLM2, "model.precision=bfloat16"), parts=PARTS),
    Case(name="smollm2 float32", overrides=_SMOLLM2, parts=("transfer", "pause")),
)
TUNINGS = {
    "all weights": (),
    "last 2 layers": ("tuning=freeze", "tuning.layers=2"),
    "LoRA, rank 8": ("tuning=lora", "tuning.rank=8"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Medians over the turns of one run, in milliseconds."""

    megabytes: float
    calls: int
    """Of Ray: one to each trainer rank, one to each engine."""
    pickled_bytes: int
    """The manifest."""
    first_ms: float
    """Of the run's first version, which vLLM's own loaders load and which the plan is checked against."""
    publish_ms: float
    to_first_token_ms: float
    token_ms: float
    """The same request when no weights have changed: what of `to_first_token_ms` no transfer could save."""
    packing_ms: float
    copying_ms: float
    share_of_packing: float
    """Speed of `publish` over that of packing alone."""
    share_of_packing_to_token: float
    gigabytes_per_s: float
    same_answer: bool
    """As a fresh engine that has read the exported model: tokens and log-probs, bit for bit."""


def lesson_of(number: int, vocabulary: int) -> Share:
    tokens = tuple(np.random.default_rng((SEED, number)).integers(6, vocabulary, TOKENS).tolist())
    example = Example(part=Part.TEXT, token_ids=tokens, prompt_length=1, mask=(True,) * (TOKENS - 1))
    return Share(lessons=(Lesson(id=str(number), examples=(example,), margin=0.0),), reference=())


@contextmanager
def team(overrides: Sequence[str], folder: Path, *, rollout: bool) -> Iterator[tuple[Any, Config]]:
    """Workers as a run starts them."""
    from dataclasses import replace

    from engine.tasks import prepare_online
    from workers.team import start_workers

    quiet = ("reward.workers=1", "algo.kl_coef=0", f"run.folder={folder}", "run.name=sync", "train.warmup_updates=0")
    config = load_config([*overrides, *quiet])
    settings = replace(config.team(), rollout_workers=rollout)
    rewards = prepare_online(config).rewards if rollout else ()
    tell_stderr = partial(print, file=sys.stderr)
    with start_workers(settings, rewards, (), announce=tell_stderr, started=tell_stderr, tell=tell_stderr) as workers:
        yield workers, config


def learn(workers: Any, config: Config, number: int) -> None:
    """One optimizer step on made-up tokens."""
    share = lesson_of(number, min(config.sizes.vocabulary, 4096))
    workers.policy.fit([share], totals_of(share.lessons, horizon=TOKENS), SFT())


def transfer(case: Case, folder: Path, repeats: int) -> Transfer:
    import ray

    from tests.bench._sync_engine import copying_alone, greedy_answer, make_engine, packing_alone, timed, weights_of
    from workers.records import GroupRequest, Prompt, Sampling

    with team(case.overrides, folder, rollout=True) as (workers, config):
        weights = weights_of(config.model)
        pack, token_ids = packing_alone(weights), tuple(range(10, 26))
        prompt = Prompt(id="0", messages=(), token_ids=token_ids, answer="", row={}, from_text=True)

        def ask(max_tokens: int) -> Any:
            sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
            request = GroupRequest(prompt=prompt, draw=0, num_samples=1, seed=0, sampling=sampling, with_greedy=False)
            return ray.get(workers.rollout.generate(request)).rollouts[0]

        report = None

        def publish(version: int) -> None:
            nonlocal report
            report = workers.publish_weights(version=version)

        first = timed(lambda: publish(0))
        copy = copying_alone(report.num_bytes)
        turns = []
        for version in range(1, repeats + WARM_UP + 1):
            learn(workers, config, version)
            published = timed(lambda version=version: publish(version))
            token = timed(lambda: ask(1))
            turns.append((published, published + token, timed(lambda: ask(1)), timed(pack), timed(copy)))
        published, to_token, token, packed, copied = (median(column) for column in zip(*turns[WARM_UP:], strict=True))
        answer = ask(ANSWER_TOKENS)
        workers.policy.export(folder / "exported")
        expected_from = copy_tokenizer(Path(config.model.path), folder / "exported")
    from dataclasses import replace

    fresh = greedy_answer(
        make_engine(replace(config.model, path=str(expected_from))), token_ids, max_tokens=ANSWER_TOKENS
    )
    same = answer.token_ids.tolist() == fresh.token_ids.tolist()
    return Transfer(
        megabytes=report.num_bytes / 1e6,
        calls=config.train.ranks + config.rollout.engines,
        pickled_bytes=len(pickle.dumps(report.manifest)),
        first_ms=1e3 * first,
        publish_ms=1e3 * published,
        to_first_token_ms=1e3 * to_token,
        token_ms=1e3 * token,
        packing_ms=1e3 * packed,
        copying_ms=1e3 * copied,
        share_of_packing=packed / published,
        share_of_packing_to_token=packed / to_token,
        gigabytes_per_s=report.num_bytes / published / 1e9,
        same_answer=same and answer.logprobs.tobytes() == fresh.logprobs.tobytes(),
    )


def copy_tokenizer(source: Path, target: Path) -> Path:
    for file in source.iterdir():
        if not (target / file.name).exists() and file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    return target


def pause(case: Case, folder: Path, repeats: int) -> dict[str, dict[str, float]]:
    """By what running requests do with the keys and values of the old weights."""
    from tests.bench._sync_engine import make_engine, pauses

    model = load_config(case.overrides).model
    return {swap.value: asdict(pauses(make_engine(model, swap=swap), model, syncs=repeats)) for swap in WeightSwap}


def travel(case: Case, folder: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Megabytes that the trainer writes for the first version and for each later one."""
    sent = {}
    for name, tuning in TUNINGS.items():
        with team((*case.overrides, *tuning), folder, rollout=False) as (workers, config):
            first = workers.policy.publish(0).num_bytes
            learn(workers, config, 1)
            sent[name] = {"first_mb": first / 1e6, "later_mb": workers.policy.publish(1).num_bytes / 1e6}
    return sent


def changed(case: Case, folder: Path, repeats: int) -> dict[str, list[float]]:
    """By learning rate: the share of weights that each optimizer step changed."""
    from workers.weight_sync import read_weights

    shares: dict[str, list[float]] = {}
    for rate in LEARNING_RATES:
        with team((*case.overrides, f"train.learning_rate={rate}"), folder, rollout=False) as (workers, config):
            before = {name: tensor.clone() for name, tensor in read_weights(workers.policy.publish(0))}
            total = sum(tensor.numel() for tensor in before.values())
            shares[f"{rate:.0e}"] = []
            for number in range(1, ADAM_STEPS + 1):
                learn(workers, config, number)
                moved = 0
                for name, tensor in read_weights(workers.policy.publish(number)):
                    moved += int((tensor != before[name]).sum())
                    before[name].copy_(tensor)
                shares[f"{rate:.0e}"].append(moved / total)
    return shares


def measured_apart(case: Case, part: str, repeats: int) -> list[dict[str, Any]]:
    """In a process of its own, whose engines and workers are gone when it ends."""
    arguments = ["--case", case.name, "--part", part, "--repeats", str(repeats)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "measured.json"
        command = [sys.executable, "-m", "tests.bench.sync", *arguments, "--json", str(file)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return json.loads(file.read_text())


MEASURES = {"transfer": transfer, "pause": pause, "travel": travel, "changed": changed}


def measure(case: Case, part: str, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        found: Any = MEASURES[part](case, Path(folder), repeats)
    return {
        "case": case.name,
        "part": part,
        "command": f"python -m tests.bench.sync --case '{case.name}' --part {part} --repeats {repeats}",
        "git": git_version(),
        "seed": SEED,
        "repeats": repeats,
        "measured": found if isinstance(found, dict) else asdict(found),
    }


def show(measured: Sequence[dict[str, Any]]) -> None:
    for part in PARTS:
        rows = [one for one in measured if one["part"] == part]
        if not rows:
            continue
        table = Table("", *(one["case"] for one in rows), title=part, title_justify="left")
        for name in rows[0]["measured"]:
            table.add_row(name, *(_told(one["measured"][name]) for one in rows))
        Console(width=110).print(table)


def _told(value: object) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {_told(part)}" for name, part in value.items())
    if isinstance(value, list):
        return "  ".join(f"{part:.2%}" for part in value)
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def _as_workers_run() -> None:
    """Start again with the workers' own settings, which OpenMP and malloc read only once."""
    settings = process_settings(load_config([]).team())
    if not settings.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", "tests.bench.sync", *sys.argv[1:]], {**os.environ, **settings})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--case", metavar="WORD", default="", help="those whose name holds this (default: all)")
    parser.add_argument("--part", choices=PARTS, help="one of them (default: all)")
    parser.add_argument("--repeats", type=int, default=9, help="turns, after those that warm up")
    asked = parser.parse_args()
    _as_workers_run()
    if asked.repeats < 1:
        parser.error(f"--repeats is {asked.repeats}: at least 1")
    cases = [case for case in CASES if asked.case in case.name and (Path(SMOLLM2).exists() or "nano" in case.name)]
    if not packs_bfloat16():
        print("oneDNN packs no bfloat16 on this CPU: those cases are left out", file=sys.stderr)
        cases = [case for case in cases if "bfloat16" not in case.name]
    if not cases:
        parser.error(
            f"--case is {asked.case}: there are {', '.join(case.name for case in CASES)} (see examples/smollm2)"
        )
    chosen = [(case, part) for case in cases for part in case.parts if asked.part in (None, part)]
    if not chosen:
        parser.error(f"--part is {asked.part}: not measured for {', '.join(case.name for case in cases)}")
    measured = []
    for case, part in chosen:
        print(f"{case.name}, {part} ...", file=sys.stderr)
        alone = len(chosen) == 1
        measured += [measure(case, part, asked.repeats)] if alone else measured_apart(case, part, asked.repeats)
    tell(measured, asked.json, lambda: show(measured))
    if not all(one["measured"].get("same_answer", True) for one in measured):
        sys.exit("an engine answered otherwise than a fresh one: the figures are void")


if __name__ == "__main__":
    main()
