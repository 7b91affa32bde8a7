"""Adapters of earlier runs, as PEFT writes them, and who serves the one that is learned. Import-light: no torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from workers.config import LoraInit, TuningConfig, TuningMethod

ADAPTER = "default"
"""PEFT's name for the one adapter that is learned."""
CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
HEAD = "lm_head"
KINDS = {"LORA": TuningMethod.LORA, "OFT": TuningMethod.OFT}
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM makes room for."""


class AdapterError(ValueError):
    """A folder that holds no adapter that can be gone on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFolder:
    """What a folder's adapter_config.json says.

    Example:
        AdapterFolder(path=Path("runs/one/export"), method=TuningMethod.LORA, rank=8, is_plain=True,
                      has_dora_head=False)
    """

    path: Path
    method: TuningMethod
    rank: int
    """0 for one without a rank."""
    is_plain: bool
    """Low-rank additions and nothing else: what a rollout engine can serve beside the base."""
    has_dora_head: bool
    """DoRA on a language model's head, which nothing here can learn (`workers.heads`)."""


def read_adapter(path: str) -> AdapterFolder:
    """Raises AdapterError for a folder without an adapter, or with one of another kind than LoRA and OFT."""
    folder = Path(path)
    missing = [name for name in (CONFIG_FILE, TENSORS_FILE) if not (folder / name).is_file()]
    if missing:
        raise AdapterError(f"{path} holds no {' and no '.join(missing)}")
    settings = json.loads((folder / CONFIG_FILE).read_text())
    kind = settings.get("peft_type")
    if kind not in KINDS:
        raise AdapterError(f"{path} holds an adapter of kind {kind}, and only {' and '.join(KINDS)} are known")
    plain_start = settings.get("init_lora_weights") in (True, False, "gaussian", "orthogonal")
    extras = ("use_dora", "modules_to_save", "rank_pattern", "trainable_token_indices", "target_parameters")
    return AdapterFolder(
        path=folder,
        method=KINDS[kind],
        rank=int(settings.get("r") or 0),
        is_plain=kind == "LORA" and plain_start and not any(settings.get(name) for name in extras),
        has_dora_head=bool(settings.get("use_dora")) and _targets_head(settings.get("target_modules")),
    )


def _targets_head(targets: list[str] | str | None) -> bool:
    """Of PEFT's `target_modules`: ends of names, or a pattern for whole ones."""
    if isinstance(targets, str):
        return re.fullmatch(targets, HEAD) is not None
    return any(name.rpartition(".")[2] == HEAD for name in targets or ())


def served_rank(tuning: TuningConfig) -> int:
    """Rank of the adapter that rollout engines serve beside the base; 0 where they get merged weights instead."""
    return 0 if why_merged(tuning) else _room_for(_rank(tuning))


def why_merged(tuning: TuningConfig) -> str:
    """What a rollout engine cannot serve apart from the base, in words; empty where it can."""
    unserved = {
        tuning.method.value: tuning.method is not TuningMethod.LORA,
        "dora": tuning.dora,
        "pissa": tuning.init is LoraInit.PISSA,
        "also_train": bool(tuning.also_train),
        "an adapter that is not plain lora": tuning.continue_last and not read_adapter(tuning.adapters[-1]).is_plain,
    }
    names = [name for name, holds in unserved.items() if holds]
    if not names and not _room_for(_rank(tuning)):
        names = [f"a rank above {SERVED_RANKS[-1]}"]
    return " with ".join(names)


def _rank(tuning: TuningConfig) -> int:
    return read_adapter(tuning.adapters[-1]).rank if tuning.continue_last else tuning.rank


def _room_for(rank: int) -> int:
    """The least room that vLLM makes; 0 where it makes none."""
    return min((room for room in SERVED_RANKS if room >= rank), default=0)
