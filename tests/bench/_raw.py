"""The least that a step can be: vLLM asked for the step's responses, and a loop of plain PyTorch over their tokens.

    python -m tests.bench._raw generate|train ASKED.json TOLD.json      # seconds of each step

Each in a process that does nothing else, without Ray, records, rewards or DeepSpeed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

Rows = list[tuple[list[int], int]]
"""Of a step: each response's prompt, and how many tokens it has."""


def generate(asked: dict) -> list[float]:
    """As our engine asks: a request a response, with its own seed, its log-probs, no text."""
    from workers.vllm_environment import CPU_ENVIRONMENT, VLLM_ENVIRONMENT

    os.environ.update({**VLLM_ENVIRONMENT, **CPU_ENVIRONMENT})
    from vllm import LLM, SamplingParams

    from workers.vllm_engine import CPU_BLOCK_TOKENS

    llm = LLM(
        model=asked["model"],
        dtype="bfloat16",
        max_model_len=asked["context_length"],
        max_num_seqs=asked["max_running"],
        max_num_batched_tokens=8192,
        enforce_eager=True,
        block_size=CPU_BLOCK_TOKENS,
        kv_cache_memory_bytes=int(asked["kv_cache_gib"] * 2**30),
        enable_chunked_prefill=False,
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
    )
    seconds = []
    for rows in asked["steps"]:
        llm.reset_prefix_cache()  # new weights make it useless
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in rows]
        params = [
            SamplingParams(
                temperature=1.0, max_tokens=length, ignore_eos=True, seed=number, logprobs=0, detokenize=False
            )
            for number, (_, length) in enumerate(rows)
        ]
        started = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - started)
        assert [len(output.outputs[0].token_ids) for output in outputs] == [length for _, length in rows]
    return seconds


def train(asked: dict) -> list[float]:
    """Rows of about one length below each other, causal attention, all logits of the responses, one AdamW step of
    float32 weights that the bfloat16 ones are copied from."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(asked["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        asked["model"], dtype=torch.bfloat16, attn_implementation="sdpa", local_files_only=True
    ).train()
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    masters = [parameter.detach().float() for parameter in own]
    for parameter in own:
        parameter.grad = torch.zeros_like(parameter)
    for master in masters:
        master.grad = torch.zeros_like(master)
    optimizer = torch.optim.AdamW(masters, lr=1e-6, weight_decay=0.0, fused=True)
    seconds = []
    for rows in asked["steps"]:
        random = torch.Generator().manual_seed(0)
        batches = _batches(rows, asked["tokens_per_micro_batch"], random)
        total = sum(length for _, length in rows)
        started = time.perf_counter()
        for tokens_BS, predictor_N, target_N in batches:
            hidden = model.model(input_ids=tokens_BS, use_cache=False).last_hidden_state.flatten(0, 1)
            logits_NV = model.lm_head(hidden[predictor_N]).float()
            loss = torch.nn.functional.cross_entropy(logits_NV, target_N, reduction="sum") / total
            loss.backward()
        torch._foreach_copy_([master.grad for master in masters], [parameter.grad for parameter in own])
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(own, masters)
        torch._foreach_zero_([parameter.grad for parameter in own])
        seconds.append(time.perf_counter() - started)
    return seconds


def _batches(rows: Rows, most_tokens: int, random: object) -> list:
    """Padded micro-batches within a budget: tokens, where each response token is predicted, the tokens themselves."""
    import torch

    left, batches = sorted(rows, key=lambda row: -len(row[0]) - row[1]), []
    while left:
        width = len(left[0][0]) + left[0][1]
        chosen, left = left[: max(1, most_tokens // width)], left[max(1, most_tokens // width) :]
        tokens_BS = torch.zeros(len(chosen), width, dtype=torch.long)
        predictors = []
        for number, (prompt, length) in enumerate(chosen):
            end = len(prompt) + length
            tokens_BS[number, : len(prompt)] = torch.tensor(prompt)
            tokens_BS[number, len(prompt) : end] = torch.randint(0, 49_152, (length,), generator=random)
            predictors.append(torch.arange(len(prompt) - 1, end - 1) + number * width)
        predictor_N = torch.cat(predictors)
        batches.append((tokens_BS, predictor_N, tokens_BS.flatten()[predictor_N + 1]))
    return batches


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[2]).read_text())
    found = {"generate": generate, "train": train}[sys.argv[1]](given)
    Path(sys.argv[3]).write_text(json.dumps(found))
