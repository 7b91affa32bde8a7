"""How much memory each worker of a run needs, from the sizes of its model: a formula, not a measurement.

With P parameters on R trainer ranks, and e = 2 bytes a number in bfloat16, 4 in float32:

    trainer    weights e P; gradients e P; optimizer: two moments and, from ZeRO 1 on, a float32 copy of the weights,
               12 P (ZeRO, 1910.02054, section 3.1: 2 + 2 + 12 bytes in bfloat16; DeepSpeed keeps the copy in float32
               too: 4 + 4 + 12; without ZeRO 4 + 4 + 8). Stage 1 divides the optimizer's by R, 2 also the gradients,
               3 also the weights. Where only some layers or an adapter are learned, P counts those, but for the
               weights; quantized matrices take 0.53 bytes a number in 4 bits, 1 in 8.
    its step   gradients; and the backward pass (activations, what the head takes, DeepSpeed's buckets) or the optimizer
               (gradients in float32 and AdamW's temporaries, 16 bytes a parameter that the rank owns), whichever is
               larger; on a CPU both, from ZeRO 1 on: its flat copies seldom find room in what the pass has freed.
    activations  of a layer, per token: e (8 h + 3 q + 2 k + 4 i), with h hidden, q queries, k keys, i intermediate:
               what transformers keeps (workers/activations.py); of a layer that is computed again, e h, and of one
               such layer at a time the whole.
    head       a tile of the logits at a time (workers/linear_logprobs.py), whatever the vocabulary and the micro-batch;
               and, per token, (4 + 2 e) h: what it reads, and the gradient of that in float32 and rounded.
    engine     weights; key-value cache, 2 e layers k bytes a token; room for one batch of prompt tokens.
    critic     as the trainer, without that head; of the policy's size unless critic.path is another model.
    reference  weights; one layer's activations; the head.
    reward     nothing for a function; for a reward model its weights and one layer's activations.
    judge      as an engine that never sleeps; on several GPUs each has its part.

Against what was measured on CPU (a trainer of 71 million parameters in float32 and bfloat16, ZeRO 0 and 1; the whole
default run) it is right within a quarter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.config import CONF, Config
from engine.sizes import ModelSizes, sizes_of
from workers.activations import LayersOfPass, layer_bytes_per_token
from workers.config import Device, Precision, Quantization, TuningMethod

GB = 1e9
FLOAT32_BYTES = 4
FEW_SEQUENCES = 4
"""Of the full context length: with less key-value cache an engine works for hardly anybody at once."""
PROMPT_TOKENS_AT_ONCE = 8192
"""That vLLM makes room for."""
BUCKET_PARAMETERS = 5e8
"""That DeepSpeed reduces at once."""
GATHERED_PARAMETERS = 1e9
"""That ZeRO-3 keeps whole at once, and that its optimizer works on at once."""
QUANTIZED_BYTES = {Quantization.NF4: 0.53, Quantization.FP4: 0.53, Quantization.INT8: 1.0}
"""Of a number in a matrix under an adapter, its share of the scales included."""
OPTIMIZER_BYTES = 16.0
"""Of a parameter that the rank owns, while the optimizer is at it: gradients in float32 and temporaries."""
HEAD_TILE_BYTES = {Device.CPU: 10 * 2**20, Device.CUDA: 320 * 2**20}
"""Two tiles of the logits in float32 and a rounded one."""
CUDA_PROCESS_BYTES = 1e9
"""Of a process that uses a GPU, before its first tensor."""
CPU_PROCESS_BYTES = {"policy": 0.45e9, "critic": 0.45e9, "rollout": 0.8e9, "reference": 0.3e9, "reward": 0.2e9}
CPU_PROCESS_BYTES |= {"judge": 1.5e9}  # three processes: the worker, the HTTP server and the engine
"""Of a worker that holds no model yet: Python and its libraries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes of one worker on its device.

    Example (a policy of a billion parameters, alone, in bfloat16):
        Need(resident=15e9, working=22e9)
    """

    resident: float
    """Also while others have their turn."""
    working: float
    """On top, at its own turn."""

    @property
    def peak(self) -> float:
        return self.resident + self.working


def need_of(role: str, config: Config) -> Need:
    """What one worker of a role needs; `config.sizes` are known."""
    has_model = role != "reward" or bool(config.reward.model)
    if config.cluster.device is Device.CUDA:
        process = CUDA_PROCESS_BYTES if has_model else 0.0
    else:
        # A reward model brings torch along, as the reference does.
        process = max(CPU_PROCESS_BYTES[role], CPU_PROCESS_BYTES["reference"]) if has_model else CPU_PROCESS_BYTES[role]
    model = NEEDS[role](config)
    return Need(resident=process + model.resident, working=model.working)


def weight_bytes(config: Config) -> float:
    """One whole copy of the policy."""
    return number_bytes(config) * float(config.sizes.parameters)


def checkpoint_bytes(config: Config) -> float:
    """What one checkpoint takes: learned weights and the optimizer's states, of the policy and of a critic."""
    moments = (12 if config.train.zero_stage >= 1 else 8) * learned_parameters(config)
    weights = number_bytes(config) * learned_parameters(config)
    trainers = 1 + (config.algo.online and config.algo.needs.critic)
    follows = config.algo.online and config.algo.reference_refresh.every_steps > 0
    return trainers * (weights + moments) + follows * weight_bytes(config)


def learned_parameters(config: Config) -> float:
    """All of them; those of some layers; or an adapter's."""
    sizes, tuning = config.sizes, config.tuning
    matrices = _matrices(sizes)
    embedding = float(sizes.vocabulary * sizes.hidden)
    match tuning.method:
        case TuningMethod.FULL:
            return float(sizes.parameters)
        case TuningMethod.FREEZE:
            layer = sum(read * written for read, written in matrices)
            return float(min(abs(tuning.layers), sizes.layers) * layer) + embedding * _embeddings(tuning.modules)
        case TuningMethod.LORA:
            of_layer = sum(tuning.rank * (read + written) for read, written in matrices)
        case TuningMethod.OFT:
            of_layer = sum(read * (tuning.block_size - 1) / 2 for read, _ in matrices)
    return float(sizes.layers * of_layer) + embedding * _embeddings(tuning.also_train)


def held_bytes(config: Config) -> float:
    """The trainer's copy of the policy: whole, or with quantized matrices under an adapter."""
    matrices = float(config.sizes.layers * sum(read * written for read, written in _matrices(config.sizes)))
    own = QUANTIZED_BYTES.get(config.tuning.quantization, number_bytes(config))
    adapter = number_bytes(config) * learned_parameters(config) if config.tuning.has_adapter else 0.0
    return weight_bytes(config) - (number_bytes(config) - own) * matrices + adapter


def _matrices(sizes: ModelSizes) -> list[tuple[int, int]]:
    """Of a layer: how many numbers each reads, and writes."""
    hidden, queries, keys = (
        sizes.hidden,
        sizes.heads * sizes.head_dimension,
        sizes.key_value_heads * sizes.head_dimension,
    )
    feed_forward = [(hidden, sizes.intermediate), (hidden, sizes.intermediate), (sizes.intermediate, hidden)]
    return [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden), *feed_forward]


def _embeddings(names: Sequence[str]) -> int:
    """How many of them are learned whole."""
    return len({"embed_tokens", "lm_head"} & set(names))


def number_bytes(config: Config) -> int:
    return 2 if config.model.precision is Precision.BFLOAT16 else FLOAT32_BYTES


def activation_bytes_per_token(sizes: ModelSizes, *, number_bytes: int) -> float:
    """What one layer keeps for its backward pass."""
    return layer_bytes_per_token(
        hidden=sizes.hidden,
        queries=sizes.heads * sizes.head_dimension,
        keys=sizes.key_value_heads * sizes.head_dimension,
        intermediate=sizes.intermediate,
        number_bytes=number_bytes,
    )


def key_value_bytes_per_token(config: Config) -> float:
    sizes = config.sizes
    return 2.0 * number_bytes(config) * sizes.layers * sizes.key_value_heads * sizes.head_dimension


def _policy(config: Config) -> Need:
    return _trainer(config, head=_head(config))


def _trainer(config: Config, *, head: float) -> Need:
    train, learned = config.train, learned_parameters(config)
    weights, gradients = held_bytes(config), number_bytes(config) * learned
    optimizer = (12 if train.zero_stage >= 1 else 8) * learned
    owned = learned
    if train.zero_stage >= 1:
        owned, optimizer = learned / train.ranks, optimizer / train.ranks
    if train.zero_stage >= 2:
        gradients /= train.ranks
    if train.zero_stage >= 3:
        weights /= train.ranks
        owned = min(owned, GATHERED_PARAMETERS)
    turns = _activations(config) + head + _buckets(config), OPTIMIZER_BYTES * owned
    are_added = config.cluster.device is Device.CPU and train.zero_stage >= 1
    turn = sum(turns) if are_added else max(turns)
    return Need(resident=weights + optimizer, working=gradients + turn)


def _critic(config: Config) -> Need:
    """As the policy's trainer, with a number instead of log-probs."""
    return _trainer(replace(config, sizes=_sizes_at(config.critic.path, "critic.path") or config.sizes), head=0.0)


@functools.cache
def _sizes_at(path: str, key: str) -> ModelSizes | None:
    """None where it is the policy's model, or one whose sizes nobody told: taken to be of the policy's size."""
    sizes = sizes_of(path, CONF, key=key) if path else ModelSizes()
    return sizes if sizes.are_known else None


def _reference(config: Config) -> Need:
    one_layer = _micro_batch_tokens(config) * activation_bytes_per_token(
        config.sizes, number_bytes=number_bytes(config)
    )
    return Need(resident=weight_bytes(config), working=one_layer + _head(config))


def _engine(config: Config) -> Need:
    sizes, rollout = config.sizes, config.rollout
    batch = PROMPT_TOKENS_AT_ONCE * number_bytes(config) * 3.0 * (sizes.hidden + sizes.intermediate)
    samples = 3.0 * FLOAT32_BYTES * rollout.max_running * sizes.vocabulary
    if config.cluster.device is Device.CPU:
        return Need(resident=weight_bytes(config) + rollout.kv_cache_gib * 2**30, working=batch + samples)
    cache = FEW_SEQUENCES * config.model.context_length * key_value_bytes_per_token(config)
    # It sleeps while trainers on the same device have their turn.
    return Need(resident=0.0, working=weight_bytes(config) + cache + batch + samples)


def _judge(config: Config) -> Need:
    """A function needs nothing worth counting; a reward model is a reference without that head."""
    if not config.reward.model:
        return Need(resident=0.0, working=0.0)
    of_model = replace(config, sizes=_sizes_at(config.reward.model, "reward.model") or config.sizes)
    layer = activation_bytes_per_token(of_model.sizes, number_bytes=number_bytes(config))
    return Need(resident=weight_bytes(of_model), working=_micro_batch_tokens(config) * layer)


def _judge_server(config: Config) -> Need:
    judge = config.reward.judge
    served = replace(
        config,
        sizes=_sizes_at(judge.model, "reward.judge.model") or config.sizes,
        model=replace(config.model, precision=judge.precision, context_length=judge.context_length),
        rollout=replace(config.rollout, max_running=judge.max_running, kv_cache_gib=judge.kv_cache_gib),
    )
    engine = _engine(served)
    if config.cluster.device is Device.CPU:
        return engine
    return Need(resident=engine.peak / math.ceil(judge.gpus), working=0.0)


def _micro_batch_tokens(config: Config) -> int:
    """A sequence that is longer than the budget gets a pass of its own."""
    return max(config.train.tokens_per_micro_batch, config.model.context_length)


def _activations(config: Config) -> float:
    sizes, size = config.sizes, number_bytes(config)
    of_pass = LayersOfPass(
        layers=sizes.layers,
        tokens=_micro_batch_tokens(config),
        layer_bytes=activation_bytes_per_token(sizes, number_bytes=size),
        input_bytes=float(size * sizes.hidden),
    )
    again = sizes.layers if config.model.gradient_checkpointing else 0
    if config.train.activations_gib:
        again = of_pass.again_within(config.train.activations_gib * 2**30)
    return of_pass.kept_bytes(again=again)


def _head(config: Config) -> float:
    per_token = (FLOAT32_BYTES + 2.0 * number_bytes(config)) * config.sizes.hidden
    return HEAD_TILE_BYTES[config.cluster.device] + _micro_batch_tokens(config) * per_token


def _buckets(config: Config) -> float:
    """What DeepSpeed gathers and reduces at once."""
    parameters, size = float(config.sizes.parameters), number_bytes(config)
    reduced = size * min(learned_parameters(config), BUCKET_PARAMETERS) if config.train.zero_stage >= 1 else 0.0
    gathered = size * min(parameters, GATHERED_PARAMETERS) if config.train.zero_stage == 3 else 0.0
    return reduced + gathered


NEEDS = {"policy": _policy, "critic": _critic, "rollout": _engine, "reference": _reference, "reward": _judge}
NEEDS |= {"judge": _judge_server}
