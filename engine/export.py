"""The policy as a plain Hugging Face folder that transformers and vLLM load."""

from __future__ import annotations

from pathlib import Path

from engine.config import Config
from engine.data.render import load_tokenizer
from workers.team import Workers


def export(config: Config, workers: Workers) -> Path:
    """Weights, architecture and tokenizer in `<run>/export`."""
    folder = (config.run_folder / "export").absolute()
    workers.policy.export(folder)
    load_tokenizer(config.model.path).save_pretrained(folder)
    return folder
