"""TRL's side of `tests.bench.trl`: GRPOTrainer as it comes, run by the Python of its own environment.

    python tests/bench/_trl/peer.py ASKED.json TOLD.json

Knows nothing of the project. Responses have the lengths that are asked for: an end token is impossible before, and
certain at, a response's last position.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from reward import digits  # beside this file
from transformers import LogitsProcessor, LogitsProcessorList, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class ForcedLengths(LogitsProcessor):
    """Ends each row exactly at its length, the end token counted."""

    def __init__(self, lengths: list[int], end_tokens: list[int], prompt_length: int) -> None:
        self._lengths, self._end_tokens, self._prompt_length = torch.tensor(lengths), end_tokens, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ends = self._lengths <= input_ids.shape[1] - self._prompt_length + 1
        scores[:, self._end_tokens] = -torch.inf
        scores[ends] = -torch.inf
        scores[ends, self._end_tokens[0]] = 0.0
        return scores


class Timed(GRPOTrainer):
    """Times generation, and keeps what it read and wrote."""

    def __init__(self, *arguments: object, lengths: list[list[int]], **settings: object) -> None:
        super().__init__(*arguments, **settings)
        self._forced = lengths
        self.generate_s: list[float] = []
        self.prompts: list[list[list[int]]] = []
        self.lengths: list[list[int]] = []

    def _generate_single_turn(self, prompt_ids: list[list[int]], *others: object, **named: object) -> tuple:
        step = len(self.generate_s)
        processor = ForcedLengths(self._forced[step], self.eos_token_ids, max(map(len, prompt_ids)))
        model, generate = self.model, self.model.generate
        # The trainer has no place for a processor of one's own.
        model.generate = lambda **inputs: generate(**inputs, logits_processor=LogitsProcessorList([processor]))
        started = time.perf_counter()
        try:
            ids, logprobs = super()._generate_single_turn(prompt_ids, *others, **named)
        finally:
            del model.generate
        self.generate_s.append(time.perf_counter() - started)
        self.prompts.append([list(map(int, own)) for own in prompt_ids])
        self.lengths.append([len(own) for own in ids])
        return ids, logprobs


class StepClock(TrainerCallback):
    """Seconds from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self.ends = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.ends.append(time.perf_counter())

    def on_step_end(self, *_: object, **__: object) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(asked["seed"])
    responses, rows = asked["responses_per_prompt"], asked["rows_per_pass"]
    a_step = len(asked["lengths"][0])
    settings = GRPOConfig(
        output_dir=asked["folder"],
        use_cpu=True,
        seed=asked["seed"],
        # The optimizer, as ours.
        learning_rate=asked["learning_rate"],
        lr_scheduler_type="constant",
        adam_beta1=asked["betas"][0],
        adam_beta2=asked["betas"][1],
        adam_epsilon=asked["eps"],
        weight_decay=0.0,
        max_grad_norm=asked["max_grad_norm"],
        # The step, as ours.
        max_steps=len(asked["lengths"]),
        num_generations=responses,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=a_step // rows,
        max_completion_length=asked["max_response_tokens"],
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        num_iterations=1,
        loss_type="grpo",
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=asked["master_weights"],
        model_init_kwargs={"dtype": "float32" if asked["master_weights"] else "bfloat16"},
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        dataloader_pin_memory=False,
    )
    clock = StepClock()
    trainer = Timed(
        model=asked["model"],
        reward_funcs=digits,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": turns} for turns in asked["prompts"]]),
        callbacks=[clock],
        lengths=asked["lengths"],
    )
    trainer.train()
    told = {
        "step_s": [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)],
        "generate_s": trainer.generate_s,
        "prompts": trainer.prompts,
        "lengths": trainer.lengths,
        "weights": str(next(trainer.model.parameters()).dtype),
        "threads": torch.get_num_threads(),
    }
    Path(sys.argv[2]).write_text(json.dumps(told))


if __name__ == "__main__":
    main()
