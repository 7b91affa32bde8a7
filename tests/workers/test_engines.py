"""Both rollout engines, behind their worker: what they say of their tokens is what plain transformers says of them.

The models are tiny, random and in float32, so that equal means equal: see DESIGN.md, section 10, for larger ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.conftest import Served
from tests.this_cpu import packs_bfloat16
from workers.config import ClusterConfig, ModelConfig, Precision, RolloutConfig
from workers.records import GroupRequest, Prompt, Rollout, Sampling, Span, Stop, WeightManifest, WeightReceipt
from workers.rollout_worker import CutOff, RolloutWorker
from workers.vllm_engine import CPU_BLOCK_TOKENS, PROMPT_TOKENS_A_STEP, VLLMEngine
from workers.weight_sync import SharedWeights, WeightSyncError, padded_bytes

TOLERANCE = 2e-5
END = 1
SAMPLED = Sampling(temperature=1.0, max_tokens=24)
SHARP = Sampling(temperature=0.7, max_tokens=24)
GREEDY = Sampling(temperature=0.0, max_tokens=24)
LONG = 200


@pytest.fixture(params=["vllm_tied", "hf_tied"])
def served(request: pytest.FixtureRequest):
    return request.getfixturevalue(request.param)


Publish = Callable[..., WeightManifest]


@pytest.fixture
def publish() -> Iterator[Publish]:
    """Lay a model's weights out as a trainer does."""
    shared = SharedWeights()

    def write(model: PreTrainedModel, *, version: int) -> WeightManifest:
        weights = dict(model.named_parameters())
        return shared.write(weights.items(), version=version, num_bytes=padded_bytes(weights.values()))

    yield write


@pytest.fixture(params=["vllm_tied", "vllm_untied", "hf_tied"])
def reloaded(request: pytest.FixtureRequest, publish: Publish):
    """An engine that may be given other weights: it serves its first ones again when the test is over."""
    served = request.getfixturevalue(request.param)
    yield served
    served.worker.load_weights(publish(plain(served.folder), version=0)).result(60)


# ----------------------------------------------------------------------------- asking, and an independent answer


def prompt(length: int, *, number: int = 0) -> Prompt:
    tokens = np.random.default_rng((length, number)).integers(6, 100, size=length)
    return Prompt(
        id=f"{length}-{number}", messages=(), token_ids=tuple(tokens.tolist()), answer="", row={}, from_text=True
    )


def request(length: int = 9, *, draw: int = 0, samples: int = 4, seed: int = 5, sampling: Sampling = SAMPLED):
    question = prompt(length, number=draw)
    return GroupRequest(
        prompt=question, draw=draw, num_samples=samples, seed=seed, sampling=sampling, with_greedy=False
    )


def mixed_requests() -> list[GroupRequest]:
    """Prompts of many lengths, cold, hot and greedy, so that they make one batch of unlike rows."""
    return [
        request(3, draw=0),
        request(17, draw=1, sampling=SHARP),
        request(LONG, draw=2, samples=2),
        request(9, draw=3, samples=1, sampling=GREEDY),
        request(40, draw=4, samples=3, sampling=Sampling(temperature=1.3, max_tokens=7)),
    ]


def ask(worker: RolloutWorker, *requests: GroupRequest) -> list[tuple[Rollout, ...]]:
    """The siblings of each group, all asked for before the first is waited for."""
    return [future.result(60).rollouts for future in [worker.generate(each) for each in requests]]


def plain(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def perturbed(folder: Path, *, only: str = "") -> PreTrainedModel:
    """Another policy: noise on every parameter, or on those whose name holds `only`."""
    model = plain(folder)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in name:
                parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def plain_logprobs(model: PreTrainedModel, rollout: Rollout, temperature: float) -> np.ndarray:
    """One forward pass over prompt and response, by itself, unpadded and uncached."""
    context = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids.tolist()]])
    logits_TV = model(context, use_cache=False).logits[0, len(rollout.prompt.token_ids) - 1 : -1].double()
    logprobs_TV = (logits_TV / (temperature or 1.0)).log_softmax(dim=-1)
    return logprobs_TV[torch.arange(len(rollout.token_ids)), torch.from_numpy(rollout.token_ids).long()].numpy()


def gap(model: PreTrainedModel, groups: list[tuple[Rollout, ...]], requests: list[GroupRequest]) -> float:
    """The largest difference between what the engine and plain transformers say of a sampled token."""
    return max(
        float(np.abs(rollout.logprobs - plain_logprobs(model, rollout, asked.sampling.temperature)).max())
        for asked, group in zip(requests, groups, strict=True)
        for rollout in group
    )


def said(rollout: Rollout) -> tuple[list[int], bytes]:
    """A rollout's tokens and log-probs, bit for bit."""
    return rollout.token_ids.tolist(), rollout.logprobs.tobytes()


# ----------------------------------------------------------------------------- what one response says


@pytest.mark.parametrize("sampling", [SAMPLED, SHARP, GREEDY], ids=["temperature-1", "temperature-0.7", "greedy"])
def test_logprobs_are_those_of_plain_transformers_at_the_sampling_temperature(served, sampling: Sampling) -> None:
    requests = [request(length, draw=length, sampling=sampling) for length in (2, 9, LONG)]
    groups = ask(served.worker, *requests)
    assert gap(plain(served.folder), groups, requests) < TOLERANCE
    for group in groups:
        for rollout in group:
            assert rollout.token_ids.dtype == np.int32 and rollout.logprobs.dtype == np.float32
            assert len(rollout.token_ids) == len(rollout.logprobs) > 0


def test_logprobs_are_right_where_greedy_cold_and_hot_requests_share_a_batch(served) -> None:
    requests = mixed_requests()
    assert gap(plain(served.folder), ask(served.worker, *requests), requests) < TOLERANCE


def test_the_comparison_would_notice_a_temperature_that_was_left_out(hf_tied) -> None:
    asked = request(sampling=SHARP)
    unscaled = dataclasses.replace(asked, sampling=SAMPLED)
    assert gap(plain(hf_tied.folder), ask(hf_tied.worker, asked), [unscaled]) > 1000 * TOLERANCE


def test_greedy_takes_the_likeliest_token_whatever_the_seed(served) -> None:
    model = plain(served.folder)
    first, other = ask(served.worker, request(seed=1, sampling=GREEDY), request(seed=2, sampling=GREEDY))
    assert len({tuple(rollout.token_ids.tolist()) for rollout in (*first, *other)}) == 1
    tokens = list(first[0].prompt.token_ids)
    for token in first[0].token_ids.tolist():
        with torch.no_grad():
            assert token == int(model(torch.tensor([tokens])).logits[0, -1].argmax())
        tokens.append(token)


def test_a_greedy_response_beside_the_siblings_is_the_answer_without_chance_and_changes_none_of_them(served) -> None:
    asked = [request(9, draw=0, sampling=SHARP), request(LONG, draw=1, samples=2)]
    # Whole groups before and after: a prompt that is in vLLM's cache is computed otherwise.
    ask(served.worker, *asked)
    without = ask(served.worker, *asked)
    futures = [served.worker.generate(dataclasses.replace(each, with_greedy=True)) for each in asked]
    groups = [future.result(60) for future in futures]
    for each, alone, group in zip(asked, without, groups, strict=True):
        [[expected]] = ask(served.worker, dataclasses.replace(each, num_samples=1, sampling=GREEDY))
        greedy = group.greedy
        assert greedy.token_ids.tolist() == expected.token_ids.tolist() and greedy.stop is expected.stop
        assert greedy.text == expected.text and greedy.prompt is each.prompt and greedy.draw == each.draw
        np.testing.assert_allclose(greedy.logprobs, expected.logprobs, atol=TOLERANCE, rtol=0)
        for rollout, twin in zip(group.rollouts, alone, strict=True):
            assert rollout.token_ids.tolist() == twin.token_ids.tolist()
            np.testing.assert_allclose(rollout.logprobs, twin.logprobs, atol=TOLERANCE, rtol=0)


def test_sampled_tokens_follow_the_distribution_that_their_logprobs_describe(served) -> None:
    first_token = Sampling(temperature=0.7, max_tokens=1)
    [group] = ask(served.worker, request(samples=1000, sampling=first_token))
    with torch.no_grad():
        logits_V = plain(served.folder)(torch.tensor([group[0].prompt.token_ids])).logits[0, -1].double()
    expected = 1000 * (logits_V / 0.7).softmax(dim=-1).numpy()
    seen = np.bincount([int(rollout.token_ids[0]) for rollout in group], minlength=len(expected))
    common = expected > 5
    pooled_seen = np.append(seen[common], seen[~common].sum())
    pooled_expected = np.append(expected[common], expected[~common].sum())
    chi_square = float(((pooled_seen - pooled_expected) ** 2 / pooled_expected).sum())
    freedom = len(pooled_seen) - 1
    assert freedom >= 5
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)  # four standard deviations of the chi-square law


def test_spans_cover_every_token_once_with_the_served_version(served) -> None:
    for group in ask(served.worker, *mixed_requests()):
        for rollout in group:
            assert rollout.spans == (Span(start=0, end=len(rollout.token_ids), sampled=True, version=0),)
            assert rollout.action_mask().all()


def test_a_response_ends_with_the_end_token_or_at_the_limit(served) -> None:
    [group] = ask(served.worker, request(samples=32))
    assert {rollout.stop for rollout in group} == {Stop.END, Stop.LENGTH}
    for rollout in group:
        assert END not in rollout.token_ids[:-1]
        assert (rollout.stop is Stop.END) == (rollout.token_ids[-1] == END)
        assert rollout.stop is Stop.END or len(rollout.token_ids) == SAMPLED.max_tokens
        assert rollout.text == "" or "<|" not in rollout.text


def test_an_end_token_at_the_very_limit_is_an_end_and_one_token_less_is_a_cut(served) -> None:
    [group] = ask(served.worker, request(samples=32))
    ended = min((r for r in group if r.stop is Stop.END and len(r.token_ids) > 1), key=lambda r: len(r.token_ids))
    length = len(ended.token_ids)
    limits = [Sampling(temperature=1.0, max_tokens=limit) for limit in (length, length - 1)]
    whole, cut = ask(served.worker, *[request(samples=32, sampling=limit) for limit in limits])
    assert whole[ended.sample].stop is Stop.END
    assert cut[ended.sample].stop is Stop.LENGTH
    np.testing.assert_array_equal(whole[ended.sample].token_ids, ended.token_ids)
    np.testing.assert_array_equal(cut[ended.sample].token_ids, ended.token_ids[:-1])


# ----------------------------------------------------------------------------- keyed randomness


def test_vllm_says_the_same_bit_for_bit_in_any_company(vllm_tied) -> None:
    never_from_the_cache = range(CPU_BLOCK_TOKENS)
    requests = [asked for asked in mixed_requests() if len(asked.prompt.token_ids) in never_from_the_cache]
    together = ask(vllm_tied.worker, *requests)
    reversed_order = ask(vllm_tied.worker, *requests[::-1])[::-1]
    alone = [ask(vllm_tied.worker, each)[0] for each in requests]
    beside_greedy = ask(vllm_tied.worker, *[dataclasses.replace(each, with_greedy=True) for each in requests])
    for company in (reversed_order, alone, beside_greedy):
        for group, again in zip(together, company, strict=True):
            assert [said(rollout) for rollout in group] == [said(rollout) for rollout in again]


def test_the_same_tokens_are_sampled_in_any_company(served) -> None:
    """Log-probs may round differently: HF pads a batch, vLLM computes a prompt that it finds in its cache otherwise."""
    requests = mixed_requests()
    together = ask(served.worker, *requests)
    reversed_order = ask(served.worker, *requests[::-1])[::-1]
    alone = [ask(served.worker, each)[0] for each in requests]
    for company in (reversed_order, alone):
        for group, again in zip(together, company, strict=True):
            for rollout, twin in zip(group, again, strict=True):
                np.testing.assert_array_equal(rollout.token_ids, twin.token_ids)
                np.testing.assert_allclose(rollout.logprobs, twin.logprobs, atol=TOLERANCE, rtol=0)


def test_more_prompt_tokens_than_one_decoding_step_reads_change_no_token(vllm_tied) -> None:
    """On CPU vLLM cannot take a seeded request back that it had to read in two pieces."""
    two = Sampling(temperature=1.0, max_tokens=2)
    crowd = [request(450, draw=draw, samples=1, sampling=two) for draw in range(24)]
    assert sum(len(each.prompt.token_ids) for each in crowd) > PROMPT_TOKENS_A_STEP
    together = ask(vllm_tied.worker, *crowd)
    for asked, (rollout,) in list(zip(crowd, together, strict=True))[-6:]:
        ((alone,),) = ask(vllm_tied.worker, asked)
        assert rollout.token_ids.tolist() == alone.token_ids.tolist()


def test_a_smaller_group_is_the_beginning_of_a_larger_one(served) -> None:
    small, large = ask(served.worker, request(samples=2), request(samples=5))
    assert [r.token_ids.tolist() for r in small] == [r.token_ids.tolist() for r in large[:2]]


def test_samples_draws_and_seeds_differ(served) -> None:
    question = request(samples=8)
    later = dataclasses.replace(question, draw=1)
    other = dataclasses.replace(question, seed=6)
    groups = ask(served.worker, question, later, other)
    texts = [tuple(rollout.token_ids.tolist()) for group in groups for rollout in group]
    assert len(set(texts)) == len(texts) == 24


# ----------------------------------------------------------------------------- new weights


@pytest.mark.parametrize("only", ["", "embed_tokens", "layers.2.mlp"], ids=["all", "embedding", "one-mlp"])
def test_logprobs_follow_new_weights_exactly(reloaded, publish: Publish, only: str) -> None:
    requests = mixed_requests()
    before = ask(reloaded.worker, *requests)  # fills the prefix cache with keys of the old weights
    new = perturbed(reloaded.folder, only=only)
    manifest = publish(new, version=3)
    receipt = reloaded.worker.load_weights(manifest).result(60)
    assert receipt == WeightReceipt(
        version=3, checksum=manifest.checksum, num_bytes=sum(p.numel() * 4 for p in new.parameters())
    )
    after = ask(reloaded.worker, *requests)
    assert gap(new, after, requests) < TOLERANCE
    assert gap(new, before, requests) > 1000 * TOLERANCE  # the weights are different enough to tell
    assert {span.version for group in after for rollout in group for span in rollout.spans} == {3}


def test_the_first_weights_loaded_again_say_bit_for_bit_what_they_said_first(reloaded, publish: Publish) -> None:
    requests = [request(9, draw=0), request(LONG, draw=1, samples=2), request(17, draw=2, sampling=SHARP)]
    reloaded.worker.load_weights(publish(plain(reloaded.folder), version=0)).result(60)  # nothing is cached
    first = ask(reloaded.worker, *requests)
    for version in (1, 2):
        reloaded.worker.load_weights(publish(perturbed(reloaded.folder), version=version)).result(60)
        ask(reloaded.worker, *requests)
    reloaded.worker.load_weights(publish(plain(reloaded.folder), version=3)).result(60)
    again = ask(reloaded.worker, *requests)
    for group, twins in zip(first, again, strict=True):
        assert [said(rollout) for rollout in group] == [said(rollout) for rollout in twins]
        assert all(span.version == 3 for rollout in twins for span in rollout.spans)


def test_a_request_behind_new_weights_in_the_queue_is_sampled_from_them(reloaded, publish: Publish) -> None:
    new = perturbed(reloaded.folder)
    loading = reloaded.worker.load_weights(publish(new, version=9))
    asked = request()
    groups = ask(reloaded.worker, asked)
    assert loading.result(60).version == 9
    assert gap(new, groups, [asked]) < TOLERANCE


@pytest.mark.parametrize("which", ["checksum", "bytes"])
def test_weights_that_did_not_arrive_as_sent_are_refused_and_the_next_ones_served(
    reloaded, publish: Publish, which: str
) -> None:
    new = perturbed(reloaded.folder)
    manifest = publish(new, version=1)
    if which == "checksum":
        damaged = dataclasses.replace(manifest, checksum="0" * 16)
    else:
        damaged = manifest
        with open(manifest.path, "r+b") as memory:
            memory.seek(manifest.entries[7].offset + 5)
            [byte] = memory.read(1)
            memory.seek(-1, 1)
            memory.write(bytes([byte ^ 0x10]))
    with pytest.raises(WeightSyncError, match="version 1"):
        reloaded.worker.load_weights(damaged).result(60)
    asked = request()
    assert gap(plain(reloaded.folder), ask(reloaded.worker, asked), [asked]) < TOLERANCE, "nothing was taken over"
    reloaded.worker.load_weights(publish(new, version=2)).result(60)
    groups = ask(reloaded.worker, asked)
    assert gap(new, groups, [asked]) < TOLERANCE
    assert {rollout.spans[0].version for rollout in groups[0]} == {2}


@pytest.fixture
def shared() -> SharedWeights:
    return SharedWeights()


def test_layers_that_stay_are_left_alone_and_the_whole_version_is_vouched_for(reloaded, shared: SharedWeights) -> None:
    requests, versions = mixed_requests(), [plain(reloaded.folder), perturbed(reloaded.folder, only="layers.2.mlp")]
    num_bytes = padded_bytes(versions[0].parameters())
    first = shared.write(versions[0].named_parameters(), version=1, num_bytes=num_bytes)
    reloaded.worker.load_weights(first).result(60)
    moved = [(name, tensor) for name, tensor in versions[1].named_parameters() if "layers.2.mlp" in name]
    second = shared.write(moved, version=2, num_bytes=num_bytes, rest_stays=True)
    before = computed_by(reloaded)
    receipt = reloaded.worker.load_weights(second).result(60)
    assert receipt == WeightReceipt(version=2, checksum=second.checksum, num_bytes=sum(t.nbytes for _, t in moved))
    assert gap(versions[1], ask(reloaded.worker, *requests), requests) < TOLERANCE
    other = {path for path, computes in computed_by(reloaded).items() if computes is not before[path]}
    assert other == ({f"model.layers.2.mlp.{name}" for name in ("gate_up_proj", "down_proj")} if before else set())


def computed_by(served) -> dict[str, object]:
    """What each of vLLM's packed layers computes with; nothing for transformers."""
    if not hasattr(served.engine, "_engine"):
        return {}
    modules = transfer_of(served).model.named_modules()
    return {path: module.cpu_linear for path, module in modules if hasattr(module, "cpu_linear")}


def transfer_of(served):
    """vLLM's side of the transfer."""
    return served.engine._engine.model_executor.driver_worker.worker.weight_transfer_engine


def held_by(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All that a vLLM model computes from: parameters, buffers, and what it packed, read back exactly."""
    held = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    dtype = next(model.parameters()).dtype
    for path, layer in model.named_modules():
        if getattr(layer, "cpu_linear", torch.nn.functional.linear) is not torch.nn.functional.linear:
            width = layer.embedding_dim if hasattr(layer, "embedding_dim") else layer.input_size
            # In each sum all terms but one are zero.
            held[f"{path} packed"] = layer.quant_method.apply(layer, torch.eye(width, dtype=dtype)).T
    return held


@pytest.mark.parametrize("which", ["vllm_tied", "vllm_untied"])
def test_weights_packed_from_where_they_lie_are_bit_for_bit_those_that_vllms_own_loaders_build(
    request: pytest.FixtureRequest, publish: Publish, which: str
) -> None:
    served = request.getfixturevalue(which)
    new, transfer = perturbed(served.folder), transfer_of(served)
    served.worker.load_weights(publish(plain(served.folder), version=1)).result(60)
    assert len(transfer._pieces) > 4 * 4, "the plan is made"
    served.worker.load_weights(publish(new, version=2)).result(60)
    direct = held_by(transfer.model)
    transfer._piece_names = frozenset()  # as if nothing were known of this model
    served.worker.load_weights(publish(new, version=3)).result(60)
    built = held_by(transfer.model)
    del built["model.embed_tokens packed"]  # a copy that vLLM never reads
    assert direct.keys() == built.keys() and len([name for name in direct if "packed" in name]) == 4 * 4 + 1
    for name, tensor in built.items():
        assert torch.equal(direct[name], tensor), name
    sent = dict(new.named_parameters())
    for path in ("model.layers.1.self_attn.o_proj", "model.layers.3.mlp.down_proj"):
        assert torch.equal(direct[f"{path} packed"], sent[f"{path}.weight"])
    served.worker.load_weights(publish(plain(served.folder), version=0)).result(60)


@pytest.mark.parametrize("order", [["k_proj", "q_proj", "v_proj"], ["q_proj", "v_proj", "k_proj"], ["q_proj"]])
def test_a_plan_that_vllms_own_loaders_contradict_is_not_followed(
    vllm_tied, publish: Publish, monkeypatch: pytest.MonkeyPatch, order: list[str]
) -> None:
    transfer, new, asked = transfer_of(vllm_tied), perturbed(vllm_tied.folder), request()
    fused = {**transfer.model.packed_modules_mapping, "qkv_proj": order}
    with monkeypatch.context() as patch:
        patch.setattr(type(transfer.model), "packed_modules_mapping", fused)
        transfer._piece_names = frozenset()
        for version in (1, 2):
            vllm_tied.worker.load_weights(publish(new, version=version)).result(60)
            assert not transfer._pieces
            assert gap(new, ask(vllm_tied.worker, asked), [asked]) < TOLERANCE
    vllm_tied.worker.load_weights(publish(plain(vllm_tied.folder), version=0)).result(60)
    assert transfer._pieces


@pytest.mark.parametrize("unknown", ["a name too few", "a name too many", "a quantized layer", "a layer that packs"])
def test_a_model_with_anything_unknown_is_left_to_vllms_own_loaders(
    vllm_tied, monkeypatch: pytest.MonkeyPatch, unknown: str
) -> None:
    from workers.vllm_direct_load import pieces_of

    model, names = transfer_of(vllm_tied).model, [name for name, _ in plain(vllm_tied.folder).named_parameters()]
    assert len(pieces_of(model, names)) == 4 * 7 + 3
    if unknown == "a name too few":
        names.remove("model.layers.1.self_attn.k_proj.bias")
    elif unknown == "a name too many":
        names.append("model.layers.1.self_attn.rotary.inv_freq")
    elif unknown == "a quantized layer":
        monkeypatch.setattr(model.model.layers[2].mlp.down_proj, "quant_method", object())
    else:
        layer = model.model.layers[2].mlp.act_fn
        monkeypatch.setattr(layer, "process_weights_after_loading", print, raising=False)
    assert pieces_of(model, names) == ()


@pytest.mark.slow
@pytest.mark.skipif(not packs_bfloat16(), reason="oneDNN packs no bfloat16 on this CPU")
def test_in_bfloat16_three_versions_in_a_row_are_computed_from_as_they_were_sent(
    tied_model: Path, publish: Publish
) -> None:
    model = ModelConfig(path=str(tied_model), precision=Precision.BFLOAT16)
    engine = VLLMEngine(model, RolloutConfig(kv_cache_gib=0.0625), ClusterConfig(), seed=0)
    transfer = engine._engine.model_executor.driver_worker.worker.weight_transfer_engine
    for version in (1, 2, 3):
        new = perturbed(tied_model, only="" if version < 3 else "layers.1").bfloat16()
        receipt = engine.load_weights(publish(new, version=version))
        assert receipt.version == version and transfer._pieces
        held, sent = held_by(transfer.model), dict(new.named_parameters())
        for number in range(4):
            path = f"model.layers.{number}.self_attn"
            for kind in ("weight", "bias"):
                parts = torch.cat([sent[f"{path}.{part}_proj.{kind}"] for part in "qkv"])
                assert torch.equal(
                    held[f"{path}.qkv_proj packed" if kind == "weight" else f"{path}.qkv_proj.bias"], parts
                )
            assert torch.equal(
                held[f"model.layers.{number}.mlp.down_proj packed"], sent[f"model.layers.{number}.mlp.down_proj.weight"]
            )
        vocabulary = len(sent["model.embed_tokens.weight"])
        assert torch.equal(held["lm_head packed"][:vocabulary], sent["model.embed_tokens.weight"])


def loading_after(served: Served, manifest: WeightManifest, *, steps: int, patch: pytest.MonkeyPatch) -> list[Future]:
    """New weights between two decoding steps, once the engine has done so many; gets the future of their receipt."""
    loading: list[Future[WeightReceipt]] = []
    left = iter(range(1000))
    step = served.engine.step

    def step_and_load() -> object:
        finished = step()
        if next(left) == steps:
            loading.append(served.worker.load_weights(manifest))
        return finished

    patch.setattr(served.engine, "step", step_and_load)
    return loading


@pytest.fixture(scope="module")
def in_flight(tied_model: Path) -> Iterator[Served]:
    """vLLM as a run with rollout.max_staleness above 0 has it."""
    torch.set_num_threads(1)
    engines: list[VLLMEngine] = []
    rollout = RolloutConfig(kv_cache_gib=0.0625, max_running=32, max_staleness=1)

    def make_engine() -> VLLMEngine:
        engines.append(VLLMEngine(ModelConfig(path=str(tied_model)), rollout, ClusterConfig(), seed=0))
        return engines[0]

    with contextlib.closing(RolloutWorker(make_engine, max_running=rollout.max_running)) as worker:
        yield Served(worker=worker, engine=engines[0], folder=tied_model)


@torch.no_grad()
def logprobs_of_two(old: PreTrainedModel, new: PreTrainedModel, rollout: Rollout, swap: int) -> np.ndarray:
    """By hand: keys and values of the prompt and the tokens before `swap` by the old weights, except of the last one,
    which the new weights read first."""
    context = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids.tolist()]])
    start, read = len(rollout.prompt.token_ids), len(rollout.prompt.token_ids) + swap - 1
    before = old(context[:, :read], use_cache=True)
    after = new(context[:, read:-1], past_key_values=before.past_key_values, use_cache=True)
    logits_TV = torch.cat([before.logits[0, start - 1 :], after.logits[0]]).double()
    own = torch.from_numpy(rollout.token_ids).long()
    return logits_TV.log_softmax(dim=-1)[torch.arange(len(own)), own].numpy()


def test_in_flight_the_old_weights_keys_stay_and_each_log_prob_is_the_one_that_was_sampled_with(
    in_flight: Served, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = plain(in_flight.folder), perturbed(in_flight.folder)
    requests = [request(9, draw=0), request(LONG, draw=1)]
    with monkeypatch.context() as patch:
        loading = loading_after(in_flight, publish(new, version=1), steps=10, patch=patch)
        groups = ask(in_flight.worker, *requests)
    assert loading[0].result(60).version == 1
    straddling = [rollout for group in groups for rollout in group if len(rollout.spans) == 2]
    assert len(straddling) >= 4
    apart = []
    for rollout in straddling:
        swap = rollout.spans[1].start
        assert [span.version for span in rollout.spans] == [0, 1] and rollout.spans[0].end == swap
        assert np.abs(rollout.logprobs - logprobs_of_two(old, new, rollout, swap)).max() < TOLERANCE
        apart.append(np.abs(rollout.logprobs - plain_logprobs(new, rollout, 1.0))[swap:].max())
    assert max(apart) > 100 * TOLERANCE, "otherwise nothing of the old weights was left to see"
    in_flight.worker.load_weights(publish(old, version=2)).result(60)


def test_in_flight_a_new_request_reads_nothing_of_the_old_weights_though_others_still_run(
    in_flight: Served, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = plain(in_flight.folder), perturbed(in_flight.folder)
    endless = Sampling(temperature=1.0, max_tokens=200)
    step, has_begun = in_flight.engine.step, Event()

    def step_and_tell() -> object:
        done = step()
        has_begun.set()
        return done

    with monkeypatch.context() as patch:
        patch.setattr(in_flight.engine, "step", step_and_tell)
        running = in_flight.worker.generate(request(LONG, draw=0, samples=16, sampling=endless))
        assert has_begun.wait(60)
    manifest = publish(new, version=3)
    assert in_flight.worker.load_weights(manifest).result(60).version == 3
    # The same prompt, whose blocks lie in the cache since the first group came.
    asked = request(LONG, draw=0, samples=4, seed=6)
    [group] = ask(in_flight.worker, asked)
    assert {span.version for rollout in group for span in rollout.spans} == {3}
    assert gap(new, [group], [asked]) < TOLERANCE < gap(old, [group], [asked])
    mixed = [rollout for rollout in running.result(60).rollouts if len(rollout.spans) == 2]
    assert mixed, "otherwise nobody ran when the weights came"
    in_flight.worker.load_weights(publish(old, version=4)).result(60)


def test_what_is_cut_off_leaves_the_engine_and_the_others_write_what_they_would_have(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = request(9, draw=0)
    [alone] = ask(served.worker, kept)
    step, cutting = served.engine.step, []
    endless = Sampling(temperature=1.0, max_tokens=200)

    def step_and_cut() -> object:
        if not cutting:
            cutting.append(served.worker.cut_off([1]))
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(served.engine, "step", step_and_cut)
        late, own = served.worker.generate(request(3, draw=1, sampling=endless)), served.worker.generate(kept)
        group = own.result(60).rollouts
    assert [rollout.token_ids.tolist() for rollout in group] == [rollout.token_ids.tolist() for rollout in alone]
    for rollout, twin in zip(group, alone, strict=True):  # a larger batch may be summed in another order
        assert np.abs(rollout.logprobs - twin.logprobs).max() < TOLERANCE
    if isinstance(served.engine, VLLMEngine):  # transformers decodes a batch to its end before it looks up
        with pytest.raises(CutOff):
            late.result(60)
        assert 4 <= cutting[0].result(60) < 4 * 200
    assert not served.engine.is_busy()


def test_requests_under_way_finish_under_new_weights_and_say_which_token_is_whose(
    vllm_tied, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = plain(vllm_tied.folder), perturbed(vllm_tied.folder)
    requests = [request(9, draw=0), request(LONG, draw=1, sampling=SHARP)]
    with monkeypatch.context() as patch:
        loading = loading_after(vllm_tied, publish(new, version=1), steps=10, patch=patch)
        groups = ask(vllm_tied.worker, *requests)
    assert loading[0].result(60).version == 1
    vllm_tied.worker.load_weights(publish(old, version=0)).result(60)

    for asked, group in zip(requests, groups, strict=True):
        straddling = [rollout for rollout in group if len(rollout.spans) == 2]
        assert len(straddling) >= len(group) // 2
        for rollout in straddling:
            before, after = rollout.spans
            assert (before.start, before.version, after.version) == (0, 0, 1)
            assert before.end == after.start and after.end == len(rollout.token_ids)
            assert rollout.spans[0].version == 0 and rollout.action_mask().all()
            for model, span in [(old, before), (new, after)]:
                expected = plain_logprobs(model, rollout, asked.sampling.temperature)
                own = slice(span.start, span.end)
                assert np.abs(rollout.logprobs - expected)[own].max() < TOLERANCE
        for rollout in group:
            assert all(first.end == second.start for first, second in pairwise(rollout.spans))
