"""The terms of a head's logits are what the head itself says, with and without what PEFT puts around it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, OFTConfig, PeftConfig, inject_adapter_in_model
from torch import Tensor, nn

from workers.adapters import ADAPTER, AdapterError
from workers.heads import head_terms
from workers.tuning import adapter_off

HIDDEN, VOCABULARY, TOKENS = 16, 29, 7


class Model(nn.Module):
    """As much of a language model as PEFT asks for."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.config = SimpleNamespace(tie_word_embeddings=False)
        self.body = nn.Linear(HIDDEN, HIDDEN)
        self.lm_head = nn.Linear(HIDDEN, VOCABULARY, bias=bias)


def adapted(config: PeftConfig | None, *, bias: bool = True) -> Model:
    torch.manual_seed(2)
    model = Model(bias=bias).double()
    if config is not None:
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
        model.double()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ADAPTER in name:  # else a new adapter changes nothing
                    parameter.normal_(std=0.3)
    return model.eval()


def summed(model: Model, hidden: Tensor) -> Tensor:
    terms, bias = head_terms(model.lm_head, hidden)
    return sum(term.read_NK @ term.weight_VK.T for term in terms) + (0.0 if bias is None else bias)


KINDS: dict[str, Callable[[], PeftConfig | None]] = {
    "plain": lambda: None,
    "lora": lambda: LoraConfig(r=4, lora_alpha=12, target_modules=["lm_head"]),
    "rslora": lambda: LoraConfig(r=4, lora_alpha=12, use_rslora=True, target_modules=["lm_head"]),
    "lora with a bias": lambda: LoraConfig(r=4, lora_alpha=12, lora_bias=True, target_modules=["lm_head"]),
    "oft": lambda: OFTConfig(oft_block_size=4, use_cayley_neumann=False, target_modules=["lm_head"]),
    "saved": lambda: LoraConfig(r=4, target_modules=["body"], modules_to_save=["lm_head"]),
}


CASES = [(kind, bias) for kind in KINDS for bias in (False, True) if bias or kind != "lora with a bias"]
"""PEFT gives a bias only to what has one."""


@pytest.mark.parametrize(("kind", "bias"), CASES)
def test_the_terms_are_the_head_with_all_its_gradients(kind: str, bias: bool) -> None:
    model = adapted(KINDS[kind](), bias=bias)
    hidden = torch.randn(TOKENS, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given = hidden.requires_grad_(True)
    learned = [given, *(own for own in model.lm_head.parameters() if own.requires_grad)]
    own, expected = summed(model, given), model.lm_head(given)
    torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)
    for grad, other in zip(*(torch.autograd.grad(said.sin().sum(), learned) for said in (own, expected)), strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-10, atol=1e-12)
    with adapter_off(model):
        torch.testing.assert_close(summed(model, given), model.lm_head(given), rtol=1e-12, atol=1e-12)
        if kind != "plain":
            assert not torch.allclose(model.lm_head(given), expected)


def test_an_adapters_dropout_is_drawn_as_the_head_draws_it() -> None:
    model = adapted(LoraConfig(r=4, lora_dropout=0.5, target_modules=["lm_head"])).train()
    hidden = torch.randn(TOKENS, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(9)
    own = summed(model, hidden)
    torch.manual_seed(9)
    torch.testing.assert_close(own, model.lm_head(hidden), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(own, summed(model, hidden))


def test_a_head_that_is_no_sum_of_products_is_refused_by_name() -> None:
    model = adapted(LoraConfig(r=4, use_dora=True, target_modules=["lm_head"]))
    with pytest.raises(AdapterError, match=r"leaves lm_head alone, or set tuning.continue_last=false"):
        head_terms(model.lm_head, torch.zeros(1, HIDDEN, dtype=torch.float64))
