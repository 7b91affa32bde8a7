"""SFT's own settings; its loss is that of pre-training (test_pt.py)."""

from __future__ import annotations

import pytest

from engine.algorithms.settings import InvalidSetting
from engine.algorithms.sft import SFT, Turns
from engine.data.base import RowKind


def test_it_learns_from_conversations_all_turns_and_no_prompt_unless_told() -> None:
    assert SFT.rows is RowKind.CONVERSATIONS
    assert SFT().turns is Turns.ALL and not SFT().train_on_prompt


def test_noise_on_the_embeddings_is_asked_of_the_worker() -> None:
    assert SFT().needs.embedding_noise == 0
    assert SFT(neftune_alpha=5.0).needs.embedding_noise == 5.0
    with pytest.raises(InvalidSetting, match="neftune_alpha is -1"):
        SFT(neftune_alpha=-1.0)
