"""NEFTune's noise: as large as the paper says, the same however rows are cut and dealt out, and only while learning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from plain_training import distance, same_bits, summed
from tiny import ALL, EACH, ODD, deal_lessons, text_of, totals_of, toy_groups, toy_rows
from toy_objectives import Text
from trainers import WEIGHTS, Call, TrainerProcesses, learn, trainer_setup
from transformers import AutoModelForCausalLM

from workers.batches import collate, select
from workers.embedding_noise import EmbeddingNoise, noise_seed
from workers.model import TokenScorer, score_tokens
from workers.packing import attend_by_segment

CPU = torch.device("cpu")
GROUPS = toy_groups()
ALPHA = 5.0
TEXTS = [text_of(row, GROUPS) for row in toy_rows((1, 2))]
OTHERS = [text_of(row, GROUPS) for row in toy_rows((3, 4))]


@pytest.mark.parametrize(("length", "width"), [(1, 64), (7, 32), (200, 48)])
def test_its_norm_is_alpha_over_the_square_root_of_three_whatever_the_length(length: int, width: int) -> None:
    noise = EmbeddingNoise(alpha=ALPHA, seeds=tuple(range(200)))
    rows = torch.stack([noise.of_row(row, length=length, width=width) for row in range(200)])
    assert rows.abs().max() <= ALPHA / (length * width) ** 0.5
    assert rows.flatten(1).norm(dim=-1).square().mean().sqrt() == pytest.approx(ALPHA / 3**0.5, rel=0.03)
    assert rows.mean().abs() < 0.02 * rows.std(), "it has no direction"


def test_every_seed_has_its_own() -> None:
    noise = EmbeddingNoise(alpha=ALPHA, seeds=(3, 4, 3))
    first, other, again = (noise.of_row(row, length=4, width=8) for row in range(3))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert noise.select([1]).seeds == (4,)
    seeds = {
        noise_seed(*key) for key in [(0, 1, "a", 0), (1, 1, "a", 0), (0, 2, "a", 0), (0, 1, "b", 0), (0, 1, "a", 1)]
    }
    assert len(seeds) == 5, "of another run, update, lesson and part"


@pytest.fixture(scope="module")
def model(folder: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def test_it_is_added_to_the_embeddings_of_a_row_by_its_own_length(folder: str, model: torch.nn.Module) -> None:
    batch = collate(toy_rows((0, 1, 2)), GROUPS)
    noise = EmbeddingNoise(alpha=ALPHA, seeds=tuple(range(len(batch))))
    packer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    attend_by_segment(packer)

    def score(scored: torch.nn.Module, rows: Sequence[int]) -> torch.Tensor:
        own = noise.select(rows)
        return score_tokens(
            TokenScorer(scored), select(batch, rows), temperature=1.0, device=CPU, noise=own
        ).logprobs_BT

    everything = list(range(len(batch)))
    padded, packed = score(model, everything), score(packer, everything)
    torch.testing.assert_close(packed, padded, atol=1e-12, rtol=1e-12)
    for row, (tokens, prompt) in enumerate(zip(batch.context, batch.prompt_lengths, strict=True)):
        embedded_LH = model.get_input_embeddings()(tokens)
        embedded_LH = embedded_LH + noise.of_row(row, length=len(tokens), width=embedded_LH.shape[1])
        logits_TV = model(inputs_embeds=embedded_LH[None]).logits[0, prompt - 1 : -1]
        alone = logits_TV.log_softmax(-1)[torch.arange(len(logits_TV)), tokens[prompt:]]
        torch.testing.assert_close(padded[row, : len(alone)], alone, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(score(packer, [row])[0], alone, atol=1e-12, rtol=1e-12)
    quiet = score_tokens(TokenScorer(model), batch, temperature=1.0, device=CPU).logprobs_BT
    assert (quiet - padded).abs().max() > 1e-2


# ----------------------------------------------------------------------------- while learning


def calls(alpha: float, verbs: Sequence[str], *, ranks: int = 1) -> list[list[Call]]:
    """Each verb, with the same lessons at odd and with others at even places."""
    objective = Text(noise=alpha)
    lessons = [TEXTS, OTHERS] * len(verbs)
    shares = [deal_lessons(own, ranks=ranks) for own in lessons]
    return [
        [(verb, (shares[n][rank], totals_of(lessons[n]), objective)) for n, verb in enumerate(verbs)]
        for rank in range(ranks)
    ]


def learned(trainer: TrainerProcesses, folder: str, alpha: float, **train: object) -> list[list]:
    asked = calls(alpha, ("fit", "fit", "fit"), ranks=trainer.ranks)
    return trainer(learn, trainer_setup(folder, **train), by_rank=[[*own, WEIGHTS] for own in asked])


@pytest.mark.parametrize(
    ("ranks", "stage", "budget", "packing"),
    [(1, 1, EACH, False), (1, 3, ODD, True), (2, 1, ODD, False), (2, 3, ODD, True)],
)
def test_the_same_noise_is_learned_through_however_lessons_are_dealt_out_and_cut(
    processes: dict[int, TrainerProcesses], folder: str, ranks: int, stage: int, budget: int, packing: bool
) -> None:
    whole = learned(processes[1], folder, ALPHA, tokens_per_micro_batch=ALL)
    cut = learned(processes[ranks], folder, ALPHA, zero_stage=stage, tokens_per_micro_batch=budget, packing=packing)
    for number in range(3):
        loss = summed([answer[number] for answer in cut], "loss")
        assert loss == pytest.approx(whole[0][number].contributions["loss"], rel=1e-6)
    assert distance(whole[0][3], cut[0][3]) < 5e-6


def test_every_update_has_noise_of_its_own_and_measuring_has_none(
    processes: dict[int, TrainerProcesses], folder: str
) -> None:
    verbs = ("assess", "assess", "fit", "fit", "fit", "assess")
    still = {"learning_rate": 0.0, "weight_decay": 0.0}
    noisy, quiet = (
        processes[1](learn, trainer_setup(folder, **still), by_rank=calls(alpha, verbs))[0] for alpha in (ALPHA, 0.0)
    )
    losses = {name: [report.contributions["loss"] for report in told] for name, told in (("n", noisy), ("q", quiet))}
    measured = (0, 1, 5)
    assert [losses["n"][n] for n in measured] == [losses["q"][n] for n in measured]
    assert abs(losses["n"][2] - losses["q"][2]) > 1e-4
    assert losses["q"][2] == losses["q"][4] and abs(losses["n"][2] - losses["n"][4]) > 1e-5, "the model stood still"


def test_a_resumed_trainer_goes_on_with_the_noise_that_would_have_come(
    processes: dict[int, TrainerProcesses], folder: str, tmp_path: Path
) -> None:
    asked = calls(ALPHA, ("fit", "fit", "fit"))[0]
    setup = trainer_setup(folder)
    straight = processes[1](learn, setup, by_rank=[[*asked, WEIGHTS]])[0]
    processes[1](learn, setup, by_rank=[[*asked[:2], ("save", (tmp_path,))]])
    resumed = processes[1](learn, setup, by_rank=[[("load", (tmp_path,)), asked[2], WEIGHTS]])[0]
    assert same_bits(resumed[-1], straight[-1]) and resumed[1] == straight[2]
