"""A trained model as a folder that others load, and the proof that what they load says the same."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from workers.config import ModelConfig, Precision, Quantization, TuningConfig
from workers.model import load_language_model, load_value_model
from workers.stopped import RunStopped
from workers.tuned_weights import adapter_settings, adapter_tensors, whole_weights, write_adapter
from workers.tuning import Gather, as_they_are, load_adapter, tune

ROWS, ROW_LENGTH = 2, 48
"""Of made-up tokens, on which two models are compared."""


class ExportError(RunStopped):
    """What was written does not say what the trained model says."""


def load_tuned(model: ModelConfig, tuning: TuningConfig, *, judges: bool, seed: int) -> PreTrainedModel:
    """The model as a run of these settings starts from it."""
    loaded = load_value_model(model) if judges else load_language_model(model, seed=seed)
    tune(loaded, tuning, seed=seed)
    return loaded


def load_checkpoint(model: PreTrainedModel, folder: Path, *, role: str) -> None:
    """What the trainer's ranks have learned, of whatever number and ZeRO stage they were, into the model.

    The caller has checked the folder's manifest: DeepSpeed unpickles what is there.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    learned = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=role)
    # The trainer wraps the model in a scorer, whose attribute is the first part of each name.
    own = {name.partition(".")[2]: tensor for name, tensor in learned.items()}
    missing, unknown = model.load_state_dict(own, strict=False)
    lost = [name for name, parameter in model.named_parameters() if parameter.requires_grad and name in missing]
    if unknown or lost:
        raise ExportError(f"{folder} is of another model: it has {unknown[:3]}, and has not {lost[:3]}")


def write_model(
    model: PreTrainedModel,
    folder: Path,
    *,
    as_adapter: bool,
    gather: Gather = as_they_are,
    is_writer: bool = True,
) -> None:
    """A plain Hugging Face folder of the whole model; or its adapter, in PEFT's layout.

    A collective call where parameters are in parts: every rank goes through it, and one writes.
    """
    if as_adapter:
        tensors = adapter_tensors(model, gather=gather)
        if is_writer:
            write_adapter(folder, tensors, adapter_settings(model))
        return
    state = {name: tensor.detach().cpu().clone() for name, tensor in whole_weights(model, gather=gather) if is_writer}
    if is_writer:
        model.config.use_cache = True
        model.save_pretrained(folder, state_dict=state)
        model.config.use_cache = False


@torch.inference_mode()
def largest_difference(
    model: PreTrainedModel, folder: Path, base: ModelConfig, tuning: TuningConfig, *, as_adapter: bool, judges: bool
) -> float:
    """Between what the model says and what the folder says once it is loaded, as a share of the largest number said.

    Raises ExportError where they say different things.
    """
    model.eval()
    if as_adapter:
        reloaded = load_tuned(base, tuning, judges=judges, seed=0)
        load_adapter(reloaded, str(folder))
    else:
        kind = AutoModelForSequenceClassification if judges else AutoModelForCausalLM
        reloaded = kind.from_pretrained(folder, dtype=model.dtype)
    said, again = (_said(one, judges=judges) for one in (model, reloaded.eval()))
    difference = float((said - again).abs().max() / said.abs().max().clamp(min=1e-6))
    exact = base.precision is Precision.FLOAT32 and tuning.quantization is not Quantization.INT8
    tolerance = 1e-4 if exact else 5e-2
    if not difference <= tolerance:
        raise ExportError(
            f"{folder} says something else than the trained model: they differ by {difference:.1e} of the largest "
            f"number, and {tolerance:.0e} is expected at most"
        )
    return difference


def _said(model: PreTrainedModel, *, judges: bool) -> Tensor:
    """Logits of made-up texts, or a reward model's scores."""
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(vocabulary, (ROWS, ROW_LENGTH), generator=generator)
    if judges:
        # One by one: no row is padded, so nothing depends on which token pads.
        return torch.cat([model(input_ids=row[None], use_cache=False).logits for row in token_ids]).float()
    return model(input_ids=token_ids, use_cache=False).logits.float()
