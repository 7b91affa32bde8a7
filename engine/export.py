"""The policy as a plain Hugging Face folder that transformers and vLLM load."""

from __future__ import annotations

from pathlib import Path

from engine.config import Config
from engine.tasks import tokenizer_of
from workers.team import Workers


def export(config: Config, workers: Workers) -> Path:
    """Weights, architecture and tokenizer in `<run>/export`."""
    folder = (config.run_folder / "export").absolute()
    workers.policy.export(folder)
    tokenizer_of(config).save_pretrained(folder)
    return folder
