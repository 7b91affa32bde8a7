"""How tightly real data are packed."""

from __future__ import annotations

import json
from itertools import count

import pytest
from tiny import ROOT
from transformers import AutoTokenizer

from workers.micro_batches import RowSize, cut_packed, cut_padded

DEMOS = ROOT.parent / "shared" / "data" / "llamafactory_demo"
"""LLaMA-Factory's demo sets, where they are."""
TOKENIZER = ROOT / "build" / "smollm2-135m"


def texts_of(file: str) -> list[list[str]]:
    """Of each row the texts that are learned from as one."""
    rows = json.loads((DEMOS / file).read_text()) if file.endswith(".json") else []
    if file == "alpaca_en_demo.json":
        return [[f"{row['instruction']}\n{row['input']}\n{row['output']}"] for row in rows]
    if file == "dpo_en_demo.json":
        turns = ["\n".join(turn["value"] for turn in row["conversations"]) for row in rows]
        return [
            [f"{turn}\n{row['chosen']['value']}", f"{turn}\n{row['rejected']['value']}"]
            for turn, row in zip(turns, rows, strict=True)
        ]
    if file == "kto_en_demo.json":
        return [["\n".join(turn["content"] for turn in row["messages"])] for row in rows]
    return [["\n".join(turn["value"] for turn in row["conversations"])] for row in rows]


@pytest.mark.skipif(not (DEMOS.exists() and TOKENIZER.exists()), reason="no demo sets, or no SmolLM2 to count tokens")
@pytest.mark.parametrize(
    "file", ["alpaca_en_demo.json", "dpo_en_demo.json", "kto_en_demo.json", "glaive_toolcall_en_demo.json"]
)
def test_real_data_fill_at_least_95_percent_of_the_budget(file: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    lengths = [[len(tokenizer(text)["input_ids"]) for text in texts] for texts in texts_of(file)]
    for budget in (2048, 4096):
        units = [tuple(min(length, budget // len(unit)) for length in unit) for unit in lengths]
        prompts = count()
        rows = [[RowSize(prompt=next(prompts), prompt_tokens=0, response_tokens=n) for n in unit] for unit in units]
        passes = cut_packed(rows, budget)
        # Measured: 0.971 (glaive at 4096) to 0.993.
        assert sum(map(sum, units)) / (len(passes) * budget) >= 0.95
        assert len(passes) < len(cut_padded(units, budget))
