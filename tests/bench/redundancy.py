"""What a training step computes, over what it has to compute: counted, matrix product by matrix product.

    python -m tests.bench.redundancy                          # nano, 1.5B in small, and SmolLM2 where its folder is
    python -m tests.bench.redundancy --json redundancy.json   # the same as JSON; --json alone prints it
    python -m tests.bench.redundancy --model nano --setting reference

With P a forward pass over the packed rows (2 FLOPs for each parameter of a matrix and token; the head reads responses
alone; attention by its own products), a step of GRPO has to do 4 P: P to decode, P forward, 2 P backward. R is what the
workers' verbs execute over that. A reference adds P (R = 1.25), old log-probs that are recomputed add P, and so do
activations that are recomputed.

Decoding is vLLM's and is not executed here: it counts as P on both sides, the reference's pass over the same rows
measured once, as if siblings shared the prompt's keys and every token were computed once. Everything else is executed
by the real `PolicyWorker` and `FrozenWorker` under PyTorch's FlopCounterMode, which is taught the products that it
passes over. Two things are made twice so that they need not be kept: the head's logits, and the attention's scores
inside PyTorch's kernel. R holds both; `without` leaves them out. Useful is what a plain pass computes, also where
nothing comes of it: attention between tokens that do not see each other (`seen` tells how much of it is read), and the
last token of each response, which predicts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, Qwen2Config

import workers.model
from engine.config import Config, load_config
from engine.origin import config_hash, git_version
from tests.bench._made_up import group_of, rows_of, seen_pairs
from tests.bench._output import tell
from workers.config import Device
from workers.frozen_worker import FrozenWorker
from workers.meeting import MeetingPoint, meeting_point
from workers.records import Group, Totals, Update

if TYPE_CHECKING:
    from workers.policy_worker import PolicyWorker

REPOSITORY = Path(__file__).resolve().parents[2]
SMOLLM2 = os.environ.get("HELIOSTAT_SMOLLM2", "build/smollm2-135m")
"""Relative to the repository, where the runs are started."""
SEED = 0
PROMPT_TOKENS = 16
RESPONSE_TOKENS = ((16, 12, 9, 15), (11, 16, 15, 10))
"""Of the siblings of each prompt. Both groups have as many tokens, so that two updates are as large as each other."""
WORDS = range(5, 100)
"""That every model's vocabulary has."""
IN_SMALL = Qwen2Config(
    vocab_size=2713, hidden_size=192, intermediate_size=1120, num_hidden_layers=4, num_attention_heads=12,
    num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
)  # fmt: skip
"""Qwen2.5-1.5B with an eighth of the width and 4 of 28 layers; a 56th of the vocabulary keeps the head's share."""

aten = torch.ops.aten
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward
Shape = Sequence[int]


def _of_sum(_: Shape, left: Shape, right: Shape, **__: object) -> int:
    return 2 * left[0] * left[1] * right[1]


def _of_attention(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


def _of_attention_backward(pull: Shape, query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    return sdpa_backward_flop_count(pull, query, key, value)


PASSED_OVER = {aten.addmm_: _of_sum, ATTENTION: _of_attention, ATTENTION_BACKWARD: _of_attention_backward}
"""What our passes call and FlopCounterMode (PyTorch 2.13) does not know, with the FLOPs by shapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a run can be told, and the R that arithmetic promises for it."""

    name: str
    overrides: tuple[str, ...]
    goal: float | None
    """None where nothing is promised: rows that are padded, each with its own prompt."""


SETTINGS = (
    Setting(name="without a reference", overrides=("algo.kl_coef=0",), goal=1.0),
    Setting(name="with a reference", overrides=("algo.kl_coef=0.04",), goal=1.25),
    Setting(name="old log-probs recomputed", overrides=("algo.kl_coef=0", "train.old_logprobs=recompute"), goal=1.25),
    Setting(name="two updates", overrides=("algo.kl_coef=0", "train.updates_per_step=2"), goal=1.25),
    Setting(
        name="two updates by the engine's log-probs",
        overrides=("algo.kl_coef=0", "train.updates_per_step=2", "train.old_logprobs=rollout"),
        goal=1.0,
    ),
    Setting(
        name="gradient checkpointing", overrides=("algo.kl_coef=0", "model.gradient_checkpointing=true"), goal=1.25
    ),
    Setting(name="padded", overrides=("algo.kl_coef=0", "train.packing=false"), goal=None),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """What was computed while somebody counted."""

    flops: int
    attention: int
    """Of them, forward."""
    scores_again: int
    """Of them, attention scores that a backward pass makes again."""
    head_tokens: int
    """Whose logits were asked for."""
    positions: int
    """That a model's body read, padding counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One step of one model under one setting."""

    model: str
    setting: str
    command: str
    git: str
    config: str
    """Hash of all settings, the model by its name here."""
    seed: int
    goal: float | None
    forward_flops: int
    """P."""
    reference_flops: int
    look_flops: int
    update_flops: int
    ratio: float
    """R: P, to decode, and the three above, over 4 P."""
    head_again: float
    """Of R: logits that are made again, tile by tile."""
    scores_again: float
    """Of R: attention scores that are made again."""
    ratio_without: float
    """R without these two."""
    sharing: float
    """The update's FLOPs over those of the same rows each with its own prompt."""
    padding: float
    """Positions that an update computes over the tokens that its rows hold; packed, a shared prompt is held once."""
    head_share: float
    """Of P, as the next one."""
    attention_share: float
    attention_seen: float
    """Pairs of tokens that see each other, over the pairs that P computes."""


# ----------------------------------------------------------------------------- counting


class _Everywhere(nullcontext[None]):
    """In place of a look at which module computes, which fails where activations are recomputed."""

    parents = frozenset({"Global"})


def counted(call: Callable[[], object], model: PreTrainedModel) -> Passes:
    """What `call` computes on the CPU with `model`, backward passes and all."""
    seen: Counter[str] = Counter()

    def read(_: object, args: tuple[object, ...], inputs: dict[str, torch.Tensor]) -> None:
        seen["positions"] += inputs["input_ids"].numel()

    def asked(logprobs: Callable[..., object]) -> Callable[..., object]:
        def ask(terms: Sequence[object], bias: object, target_N: torch.Tensor, **how: object) -> object:
            seen["head_tokens"] += len(target_N)
            return logprobs(terms, bias, target_N, **how)

        return ask

    plain = workers.model.linear_logprobs
    hook = model.base_model.register_forward_pre_hook(read, with_kwargs=True)
    workers.model.linear_logprobs = asked(plain)
    try:
        mode = FlopCounterMode(display=False, custom_mapping=PASSED_OVER)
        mode.mod_tracker = _Everywhere()
        with mode:
            call()
    finally:
        workers.model.linear_logprobs = plain
        hook.remove()
    by_operation = mode.get_flop_counts().get("Global", {})
    return Passes(
        flops=mode.get_total_flops(),
        attention=by_operation.get(ATTENTION, 0),
        # One of the five products of its backward pass.
        scores_again=by_operation.get(ATTENTION_BACKWARD, 0) // 5,
        head_tokens=seen["head_tokens"],
        positions=seen["positions"],
    )


def head_flops(model: PreTrainedModel, tokens: int) -> int:
    """Logits of so many tokens, once."""
    return 2 * tokens * model.get_output_embeddings().weight.numel()


def attention_flops(config: PretrainedConfig, pairs: int) -> int:
    """Scores of so many pairs of tokens, and values by them, in all layers."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 4 * pairs * config.num_hidden_layers * config.num_attention_heads * size


SEEN_PAIRS = sum(seen_pairs(PROMPT_TOKENS, lengths) for lengths in RESPONSE_TOKENS)


# ----------------------------------------------------------------------------- one step


def groups_of(*, own_prompts: bool) -> tuple[Group, ...]:
    """Made-up responses; with `own_prompts` the same ones, none of which is known to have a sibling."""
    random = np.random.default_rng(SEED)
    groups: list[Group] = []
    for lengths in RESPONSE_TOKENS:
        prompt = random.choice(WORDS, PROMPT_TOKENS).tolist()
        said = [random.choice(WORDS, length) for length in lengths]
        for family in [[one] for one in said] if own_prompts else [said]:
            groups.append(group_of(prompt, family, draw=len(groups), logprob=-1.0))
    return tuple(groups)


def updates_of(groups: Sequence[Group], updates: int) -> tuple[Update, ...]:
    """All rows, whole groups to each of the updates, as the driver splits a step."""
    return tuple(_update([groups[index] for index in own]) for own in np.array_split(np.arange(len(groups)), updates))


def _update(groups: Sequence[Group]) -> Update:
    rows = rows_of(groups)
    tokens = sum(rollout.action_tokens() for group in groups for rollout in group.rollouts)
    return Update(rows=rows, totals=Totals(tokens=tokens, sequences=len(rows), prompts=len(groups), horizon=16))


def frozen_of(config: Config, *, packing: bool) -> FrozenWorker:
    return FrozenWorker(config.model, Device.CPU, SEED, config.train.tokens_per_micro_batch, packing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the verbs of one step computed."""

    reference: Passes | None
    look: Passes
    update: Passes

    @property
    def flops(self) -> int:
        return self.look.flops + self.update.flops + (self.reference.flops if self.reference else 0)


def step(config: Config, policy: PolicyWorker, frozen: FrozenWorker | None, *, own_prompts: bool) -> Step:
    """A step's verbs as the driver asks for them; `frozen` where the algorithm has a reference."""
    algorithm, state, model = config.algo, config.algo.initial_state(), policy._model
    groups = groups_of(own_prompts=own_prompts)
    updates = updates_of(groups, config.train.updates_per_step)
    said: dict[str, np.ndarray] = {}

    def refer(frozen: FrozenWorker) -> None:
        said.update(frozen.reference_outputs(updates, 1.0, *groups))

    reference = counted(lambda: refer(frozen), frozen._scorer.model) if frozen else None
    look = counted(lambda: policy.look(updates, algorithm, 1.0, said, {}, *groups), model)
    policy.credit(np.linspace(-1.0, 1.0, sum(len(update.rows) for update in updates)), algorithm, state)
    return Step(reference=reference, look=look, update=counted(lambda: policy.update(algorithm, state), model))


def measure(name: str, model: Sequence[str], setting: Setting, meeting: MeetingPoint) -> Measured:
    """`model`: overrides that say which one."""
    # DeepSpeed takes seconds to import.
    from workers.policy_worker import PolicyWorker
    from workers.train_worker import RankInfo, TrainerSetup

    config = load_config(["algo=grpo", *model, *setting.overrides])
    train, groups = config.train, groups_of(own_prompts=False)
    plain = frozen_of(config, packing=True)
    forward = counted(lambda: plain.reference_outputs(updates_of(groups, 1), 1.0, *groups), plain._scorer.model)
    setup = TrainerSetup(
        model=config.model, train=train, device=Device.CPU, seed=SEED, total_updates=10, tuning=config.tuning
    )
    policy = PolicyWorker(setup, RankInfo(role="policy", rank=0, world_size=1, meeting=meeting))
    frozen = frozen_of(config, packing=train.packing) if config.algo.needs.reference else None
    own, apart = (step(config, policy, frozen, own_prompts=own_prompts) for own_prompts in (False, True))
    useful = 4 * forward.flops
    ratio = (forward.flops + own.flops) / useful
    head_again = head_flops(policy._model, own.update.head_tokens) / useful
    scores_again = own.update.scores_again / useful
    prompts = sum(1 if train.packing else len(lengths) for lengths in RESPONSE_TOKENS)
    return Measured(
        model=name,
        setting=setting.name,
        command=shlex.join(["python", "-m", "tests.bench.redundancy", "--model", name, "--setting", setting.name]),
        git=git_version(),
        config=config_hash(replace(config, model=replace(config.model, path=name))),
        seed=SEED,
        goal=setting.goal,
        forward_flops=forward.flops,
        reference_flops=own.reference.flops if own.reference else 0,
        look_flops=own.look.flops,
        update_flops=own.update.flops,
        ratio=ratio,
        head_again=head_again,
        scores_again=scores_again,
        ratio_without=ratio - head_again - scores_again,
        sharing=own.update.flops / apart.update.flops,
        padding=own.update.positions / (PROMPT_TOKENS * prompts + sum(map(sum, RESPONSE_TOKENS))),
        head_share=head_flops(policy._model, forward.head_tokens) / forward.flops,
        attention_share=forward.attention / forward.flops,
        attention_seen=attention_flops(policy._model.config, SEEN_PAIRS) / forward.attention,
    )


# ----------------------------------------------------------------------------- models


NAMES = ("nano", "1.5B in small", "smollm2-135m")


def model_of(name: str, folder: Path) -> tuple[str, ...]:
    """Overrides; what has no folder yet is written into this one."""
    match name:
        case "nano":
            return ()
        case "smollm2-135m":
            return (f"model.path={SMOLLM2}",)
    torch.manual_seed(SEED)
    AutoModelForCausalLM.from_config(IN_SMALL, dtype=torch.float32).save_pretrained(folder)
    return (f"model.path={folder}",)


def one(name: str, setting: Setting) -> Measured:
    """In this process, which keeps what DeepSpeed does not give back."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, meeting_point("127.0.0.1") as meeting:
        return measure(name, model_of(name, Path(folder)), setting, meeting)


def in_a_process(name: str, setting: Setting) -> Measured:
    """What DeepSpeed prints goes to stderr: the figures come by a file."""
    print(f"{name}: {setting.name} ...", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "measured.json"
        command = [sys.executable, "-m", "tests.bench.redundancy", "--one", name, setting.name, str(file)]
        environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
        subprocess.run(command, cwd=REPOSITORY, check=True, stdout=sys.stderr, env=environment)
        return Measured(**json.loads(file.read_text()))


def show(measured: Sequence[Measured]) -> None:
    for name in dict.fromkeys(case.model for case in measured):
        cases = [case for case in measured if case.model == name]
        [first, *_] = cases
        title = (
            f"{name}: of a forward pass the head is {first.head_share:.1%}, attention {first.attention_share:.1%} "
            f"({first.attention_seen:.0%} of it seen)"
        )
        table = Table(title=title, title_justify="left")
        for heading in ("", "goal", "R", "logits again", "scores again", "without", "shared / own", "padding"):
            table.add_column(heading, justify="right" if heading else "left")
        for case in cases:
            table.add_row(
                case.setting, f"{case.goal:.2f}" if case.goal else "", f"{case.ratio:.3f}", f"{case.head_again:.3f}",
                f"{case.scores_again:.3f}", f"{case.ratio_without:.3f}", f"{case.sharing:.3f}", f"{case.padding:.3f}",
            )  # fmt: skip
        Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--model", choices=NAMES, help="one of them (default: all)")
    parser.add_argument("--setting", metavar="WORD", default="", help="those whose name holds this (default: all)")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        name, said, file = asked.one
        setting = next(setting for setting in SETTINGS if setting.name == said)
        Path(file).write_text(json.dumps(asdict(one(name, setting))))
        return
    settings = [setting for setting in SETTINGS if asked.setting in setting.name]
    if not settings:
        parser.error(f"--setting is {asked.setting}: there are {', '.join(setting.name for setting in SETTINGS)}")
    names = [name for name in NAMES if asked.model in (None, name)]
    if not (REPOSITORY / SMOLLM2).exists():
        print(f"smollm2-135m is left out: no model in {SMOLLM2} (see examples/smollm2)", file=sys.stderr)
        names = [name for name in names if name != "smollm2-135m"]
    if not names:
        sys.exit(2)
    measured = [in_a_process(name, setting) for name in names for setting in settings]
    tell([asdict(case) for case in measured], asked.json, lambda: show(measured))


if __name__ == "__main__":
    main()
