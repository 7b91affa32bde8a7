"""What the workers can be told: plain dataclasses with one default each. Import-light: no torch, no ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from rewards.spec import Convention, Isolation


class Device(Enum):
    """Where models live."""

    CPU = "cpu"
    CUDA = "cuda"


class Precision(Enum):
    """The arithmetic of a model."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Weights(Enum):
    """Where a model's weights come from."""

    PRETRAINED = "pretrained"
    RANDOM = "random"
    """Initialised by the architecture's own rule, from the run's seed."""


class WeightSwap(Enum):
    """How a rollout engine goes over to new weights while it decodes. No token is lost either way, and each keeps the
    log-prob that it was sampled with."""

    IN_FLIGHT = "in_flight"
    """Between two decoding steps. Earlier keys and values stay, as the old weights made them."""
    ABORT_AND_RESUME = "abort_and_resume"
    """Running responses are stopped, and go on when the new weights have read all of their tokens again."""


class EngineKind(Enum):
    """The two rollout engines behind one interface."""

    VLLM = "vllm"
    HF = "hf"


class Schedule(Enum):
    """How the learning rate goes after warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class OldLogprobs(Enum):
    """Where the log-probs at the start of a step come from."""

    AUTO = "auto"
    """The policy's own, detached, when a step has one update and nothing else asks; recomputed otherwise."""
    RECOMPUTE = "recompute"
    """Always one forward pass before the first update; the ratio then starts at 1, which is checked."""
    ROLLOUT = "rollout"
    """The rollout engine's ("bypass"): the ratio then spans its mismatch with the trainer, and no pass is made."""


class TuningMethod(Enum):
    """Which numbers of a model are learned."""

    FULL = "full"
    """All of them."""
    FREEZE = "freeze"
    """Those of some layers, as they are."""
    LORA = "lora"
    """Low-rank additions to its matrices (2106.09685)."""
    OFT = "oft"
    """Orthogonal rotations of its matrices (2306.07280)."""


class Quantization(Enum):
    """How the frozen weights under an adapter are kept."""

    NONE = "none"
    NF4 = "nf4"
    """4 bits, spaced as a normal distribution is (2305.14314)."""
    FP4 = "fp4"
    INT8 = "int8"
    """8 bits, outliers apart (2208.07339)."""


class LoraInit(Enum):
    """Where a low-rank addition starts."""

    ZERO = "zero"
    """Adds nothing at first."""
    PISSA = "pissa"
    """The matrix's own principal components, which are taken out of the base (2404.02948)."""


@dataclass
class TuningConfig:
    """Which numbers of the policy (and critic, and reward model) are learned. A head that gives a score always is."""

    method: TuningMethod = TuningMethod.FULL
    layers: int = 2
    """freeze: how many of the last layers are learned; below 0, of the first."""
    modules: list[str] = field(default_factory=list)
    """freeze: names (of layers' parts, as `mlp`, or of modules outside of them, as `lm_head`); empty: whole layers."""
    rank: int = 8
    """lora: of the addition."""
    alpha: float = 0.0
    """lora: scales the addition by alpha / rank; 0 is twice the rank."""
    dropout: float = 0.0
    """lora, oft: share of an adapter's inputs (of its blocks, for oft) left out while learning; offline stages only."""
    targets: list[str] = field(default_factory=list)
    """lora, oft: names of the linear layers that get an adapter, as `q_proj`; empty: all but the head."""
    also_train: list[str] = field(default_factory=list)
    """lora, oft: modules that are learned as they are, beside the adapters, as `embed_tokens`."""
    rank_stabilized: bool = False
    """lora: scales by alpha / sqrt(rank) (2312.03732)."""
    dora: bool = False
    """lora: learns each column's length apart from its direction (2402.09353)."""
    init: LoraInit = LoraInit.ZERO
    block_size: int = 32
    """oft: of the rotations; each matrix's input size must be a multiple of it."""
    adapters: list[str] = field(default_factory=list)
    """Adapters of earlier runs, in PEFT's layout, merged into the model in this order before anything else."""
    continue_last: bool = False
    """Go on with the last one of `adapters` instead of merging it and starting a new one."""
    quantization: Quantization = Quantization.NONE
    """Of the frozen weights; with lora it is QLoRA, with oft QOFT."""
    double_quantization: bool = True
    """nf4, fp4: the scales are quantized too."""

    @property
    def has_adapter(self) -> bool:
        return self.method in (TuningMethod.LORA, TuningMethod.OFT)

    @property
    def is_own_reference(self) -> bool:
        """Whether the model that a run starts from is the model without its adapter: no second copy is needed."""
        return self.has_adapter and self.init is LoraInit.ZERO and not self.continue_last

    @property
    def changes_base(self) -> bool:
        """Whether the weights under an adapter are others than those in the model's folder."""
        merged = len(self.adapters) - self.continue_last
        return merged > 0 or self.quantization is not Quantization.NONE or self.init is LoraInit.PISSA


class Overlong(Enum):
    """What becomes of a row that has more tokens than fit."""

    ERROR = "error"
    """The run does not start, and the row is named."""
    DROP = "drop"
    """It is left out, and counted."""
    TRUNCATE = "truncate"
    """Its end is cut off, and it is counted; offline stages only."""


@dataclass
class ModelConfig:
    """The policy to train."""

    path: str = "examples/nano/policy"
    """A Hugging Face folder or hub id."""
    weights: Weights = Weights.PRETRAINED
    precision: Precision = Precision.FLOAT32
    """Arithmetic of the forward and backward pass, and of the rollout engine; optimizer states are float32."""
    context_length: int = 512
    """Most tokens of a prompt and its response together."""
    gradient_checkpointing: bool = False
    """Every layer is computed again in the backward pass; train.activations_gib says how many instead."""


@dataclass
class TrainConfig:
    """The optimizer and how DeepSpeed runs it."""

    ranks: int = 1
    """Data-parallel trainer processes."""
    zero_stage: int = 1
    """DeepSpeed ZeRO: 0 replicates, 1 shards optimizer states, 2 also gradients, 3 also weights."""
    learning_rate: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 turns clipping off."""
    warmup_updates: int = 0
    """Optimizer steps over which the learning rate rises linearly."""
    warmup_share: float = 0.0
    """The same as a share of all optimizer steps; the larger one of the two counts."""
    schedule: Schedule = Schedule.CONSTANT
    final_learning_rate_share: float = 0.0
    """Where the schedule ends, as a share of the learning rate."""
    updates_per_step: int = 1
    """Optimizer steps a batch of rollouts (or a batch of rows, offline) is split into."""
    packing: bool = True
    """Rows of a micro-batch lie one behind the other, without padding, each blind to the others, and a prompt that
    several share lies there once; otherwise they lie below each other, padded to the longest. False is for the few
    architectures whose tokens see each other by other ways than attention."""
    epochs_per_step: int = 1
    """Times that a step goes through its batch of rollouts, in the same updates."""
    examples_per_step: int = 64
    """Offline stages: rows of the data set that one optimizer step learns from, over all ranks."""
    tokens_per_micro_batch: int = 8192
    """Tokens of one forward and backward pass, padding counted; a longer sequence gets a pass of its own. With packing
    there is no padding to count."""
    activations_gib: float = 0.0
    """Memory of a rank for what a pass keeps for its backward pass: as few layers as that takes are computed again
    there. 0 sets no bound, and leaves it to model.gradient_checkpointing."""
    old_logprobs: OldLogprobs = OldLogprobs.AUTO


@dataclass
class CriticConfig:
    """The model that tells what is to be expected, for algorithms that ask for one. What is not said here is as for
    the policy (`model`, `train`)."""

    path: str = ""
    """A Hugging Face folder or hub id: a reward model brings its head along, on a language model it starts at zero.
    Empty: the policy's."""
    learning_rate: float = 1e-5
    warmup_updates: int = 0
    """Optimizer steps over which the learning rate rises linearly."""


@dataclass
class RolloutConfig:
    """How responses are sampled."""

    engine: EngineKind = EngineKind.VLLM
    engines: int = 1
    """Rollout engines; each serves whole groups."""
    prompts_per_step: int = 32
    responses_per_prompt: int = 8
    max_response_tokens: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    """Only 1: below it the engine's log-probs are those of another distribution than the trainer's."""
    top_k: int = 0
    """Only 0 (off), for the same reason."""
    max_staleness: int = 0
    """Versions by which a response's oldest token may be behind the policy that learns from it. Above 0 the engines go
    on decoding while the trainers learn, as many batches ahead; 0 learns from rollouts of the newest weights only."""
    weight_swap: WeightSwap = WeightSwap.IN_FLIGHT
    """With max_staleness above 0: what half-written responses do when new weights come."""
    oversampling: float = 1.0
    """With max_staleness=0: groups asked for, as a multiple of those that a step learns from. Above 1 the last ones
    are cut off when enough are ready: steps are shorter, and long responses are learned from less often."""
    max_running: int = 256
    """Most responses that one engine decodes together."""
    kv_cache_gib: float = 0.5
    """CPU memory for vLLM's key-value cache."""
    gpu_memory_share: float = 0.5
    """GPU memory for vLLM: weights and key-value cache together."""


@dataclass
class FunctionConfig:
    """A reward function among several."""

    function: str = ""
    """`path/to/file.py:name` or `package.module:name`."""
    convention: Convention = Convention.AUTO
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments handed to the function with each row."""
    weight: float = 1.0
    """Of its score in the sum; 0 only shows what it says."""
    data_sources: list[str] = field(default_factory=list)
    """Rows that it judges, by what their column `data_source` says; empty: every row."""
    abstains: bool = False
    """Whether None means that it has no say about a response, which the others judge; otherwise the response counts as
    unjudged."""
    isolation: Isolation = Isolation.AUTO


@dataclass
class JudgeConfig:
    """A language model that vLLM serves beside the run, for functions of `rewards.judge` that name no url."""

    model: str = ""
    """A Hugging Face folder or hub id of a model with a chat template. Empty: none."""
    precision: Precision = Precision.BFLOAT16
    context_length: int = 8192
    """Most tokens of what it is asked and its reply together."""
    max_reply_tokens: int = 1024
    """Of a reply, where a function does not say it (max_tokens)."""
    max_running: int = 64
    """Most replies that it writes together."""
    gpus: float = 1.0
    """That it takes: a share of one, or several whole ones, each with a part of every layer."""
    gpu_memory_share: float = 0.9
    """Of each of its GPUs: weights and key-value cache together."""
    kv_cache_gib: float = 1.0
    """CPU memory for its key-value cache."""


@dataclass
class RewardConfig:
    """How responses are judged."""

    function: str = ""
    """`path/to/file.py:name` or `package.module:name`, native or written for another system."""
    convention: Convention = Convention.AUTO
    """How the function is called: native (response, answer, **row), batch (responses, answers, ...), or as trl, verl,
    verl_batch, easyr1 or openrlhf do it; auto sees it from the function's parameters."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments handed to the function with each row."""
    isolation: Isolation = Isolation.AUTO
    """sample: every call in a process of its own, forked from one that has imported the file, so that nothing of it
    reaches the next; worker: one process for all calls, for a function that keeps a model or a connection. auto is
    sample, except for functions that say of themselves that they keep nothing."""
    functions: dict[str, FunctionConfig] = field(default_factory=dict)
    """Further functions by a name of your own: the reward is the weighted sum of all that a row asks for."""
    model: str = ""
    """A reward model, beside the function or (reward.function= empty) instead of it: a Hugging Face folder or hub id of
    a sequence classifier with one label, as a run of algo=rm exports it. Empty: none."""
    model_weight: float = 1.0
    function_weight: float = 1.0
    """With a reward model or further functions: the reward is their weighted sum. 0 only shows what the function
    says."""
    workers: int = 1
    """Reward workers, spread over the nodes, each with a reward model of its own."""
    processes: int = 2
    """Of each worker: responses that are judged side by side."""
    timeout_s: float = 10.0
    """For one response; then the process that runs the reward is killed and the response is left out."""
    memory_gib: float = 4.0
    """That a process may take to judge; what needs more is a failure. 0: no limit."""
    max_failure_fraction: float = 0.05
    """The run stops when more than this share of a step's responses could not be judged."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)


@dataclass
class ClusterConfig:
    """Where the workers run."""

    device: Device = Device.CPU
    address: str = ""
    """An existing Ray cluster: <head node>:6379, or auto on one of its machines; empty takes RAY_ADDRESS from the
    environment, and without it starts a local one. For engine.submit, the job server: http://<head node>:8265."""
    gpus_per_trainer: float = 1.0
    gpus_per_engine: float = 1.0
    cpus_per_worker: float = 1.0
    threads_per_worker: int = 0
    """CPU threads of the arithmetic in each trainer and engine; 0 takes the machine's cores."""
    placement_timeout_s: float = 120.0
    startup_timeout_s: float = 900.0
    """For all workers to load their models."""
    worker_restarts: int = 3
    """Times that a reward worker, a rollout engine or a reference whose process dies is replaced; the step goes on with
    the same draws, seeds and weights. 0: its death is that of the run, see run.max_restarts."""
    call_timeout_s: float = 3600.0
    """For one call to a worker; on expiry the error says who waits for whom."""


@dataclass
class TeamConfig:
    """All that `start_workers` needs."""

    model: ModelConfig
    train: TrainConfig
    rollout: RolloutConfig
    reward: RewardConfig
    cluster: ClusterConfig
    critic: CriticConfig
    tuning: TuningConfig
    seed: int
    policy_updates: int
    """Optimizer steps of the whole run, for the schedule."""
    critic_updates: int
    log_folder: str
    """Each worker's own output goes to a file here."""
    rollout_workers: bool
    """Whether the run generates and scores (an offline stage does not)."""
    reference: bool
    """Whether a frozen copy of the policy is kept."""
    reference_follows: bool
    """Whether that copy moves towards the policy during the run."""
    has_critic: bool
    policy_judges: bool
    """Whether what is trained is a reward model: a head that gives a score in place of the language model's."""

    @property
    def shares_devices(self) -> bool:
        """Fractions of a GPU for both sides mean that trainers and engines live on the same ones and take turns."""
        on_gpu = self.cluster.device is Device.CUDA and self.rollout_workers
        return on_gpu and self.cluster.gpus_per_trainer < 1 and self.cluster.gpus_per_engine < 1
