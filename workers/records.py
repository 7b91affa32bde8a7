"""The records that travel between the engine and its workers: one fact a stage, complete when made.

    GroupRequest --generate--> Group --score--> GroupSummary --deal--> Update
                                 |  its Rollouts                          |  its Rows: responses, with their rewards
                                 +---------------- collate ---------------+--> Batch --credit--> Experience --> Loss
                                                                                 |
                                                                          ModelOutputs, Credit

A group stays where it was made until trainers read it; its summary and the rows are all that the driver sees.
Tensor and array suffixes: `B` responses, `T` token positions of a response (right-padded), `G` siblings of a group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rewards.score import Failure, Judgement, Score
from workers.text_figures import digest, repetition

if TYPE_CHECKING:
    from torch import Tensor

Metrics = dict[str, float]


# ----------------------------------------------------------------------------- asking


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A function that the assistant wants called.

    Example:
        ToolCall(name="get_weather", arguments={"city": "Paris"})
    """

    name: str
    arguments: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation.

    Example:
        Message(role="user", content="12+34=")
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A question, rendered once, with all that a reward needs to judge an answer.

    Example:
        Prompt(id="arithmetic-1234", messages=(Message(role="user", content="12+34="),),
               token_ids=(3, 7, 8, 79, 9, 10, 87, 1, 4), answer="46", row={"a": 12, "b": 34},
               from_text=True)
    """

    id: str
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]
    """The chat template applied, generation prompt included; these very tokens are sampled from and trained on."""
    answer: str
    row: Mapping[str, object]
    """The other columns of the data row, handed to the reward as keyword arguments; `answer` among them, as it is
    written there, where that is no text."""
    from_text: bool
    """Whether the data row asks in a text rather than in messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How responses are drawn. Temperature 0 is greedy."""

    temperature: float
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRequest:
    """`num_samples` responses to one prompt, asked for together.

    `draw` is the prompt's position in the ledger of draws. Randomness is a function of (`seed`, `draw`, sample) alone,
    so a group that is asked for again, by another engine or after a resume, is the same group.
    """

    prompt: Prompt
    draw: int
    num_samples: int
    seed: int
    sampling: Sampling
    with_greedy: bool
    """Whether one more response is asked for, without chance, which is not learned from."""

    def sample_seed(self, sample: int) -> int:
        """A 63-bit hash of (seed, draw, sample): neighbouring samples share no stream, unlike seed + sample."""
        key = f"{self.seed}/{self.draw}/{sample}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


# ----------------------------------------------------------------------------- answers


class Stop(Enum):
    """Why a response ended."""

    END = "end"
    """The policy sampled an end token, which is the response's last token and is trained on."""
    LENGTH = "length"
    """It ran into the length limit: truncated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Tokens `start` to `end` (exclusive) of a response: who wrote them, under which weights.

    Example:
        Span(start=0, end=5, sampled=True, version=3)   # five tokens of the policy's own, sampled from version 3
    """

    start: int
    end: int
    sampled: bool
    """True for the policy's own tokens, which are trained on; False for a tool's or an environment's."""
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What an engine returns for one request: tokens exactly as sampled, never re-encoded from text."""

    token_ids: np.ndarray
    """[T] int32."""
    logprobs: np.ndarray
    """[T] float32, of the sampled token under the distribution it was sampled from (temperature applied)."""
    spans: tuple[Span, ...]
    """In order, covering every token once."""
    stop: Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One response to one prompt: sample `sample` of draw `draw`."""

    prompt: Prompt
    draw: int
    sample: int
    text: str
    """The response as a reward reads it: special tokens left out."""
    token_ids: np.ndarray
    logprobs: np.ndarray
    spans: tuple[Span, ...]
    stop: Stop

    def action_mask(self) -> np.ndarray:
        """[T] bool: the tokens that the policy sampled and may be trained on."""
        mask = np.zeros(len(self.token_ids), dtype=bool)
        for span in self.spans:
            mask[span.start : span.end] = span.sampled
        return mask

    def action_tokens(self) -> int:
        """How many those are."""
        return sum(span.end - span.start for span in self.spans if span.sampled)

    def versions(self) -> np.ndarray:
        """[T] int64: the weights that sampled each token."""
        versions = np.zeros(len(self.token_ids), dtype=np.int64)
        for span in self.spans:
            versions[span.start : span.end] = span.version
        return versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The siblings of one draw as they come from a rollout engine, in sample order."""

    rollouts: tuple[Rollout, ...]
    greedy: Rollout | None
    """The response without chance, where the algorithm asked for one: compared with, not learned from."""
    prompt_text: str
    """The prompt as the policy read it, special tokens shown."""

    def __post_init__(self) -> None:
        draws = sorted({rollout.draw for rollout in self.responses})
        if len(draws) != 1:
            raise ValueError(f"a group holds the rollouts of one draw, not of draws {draws}")

    @property
    def prompt(self) -> Prompt:
        return self.rollouts[0].prompt

    @property
    def draw(self) -> int:
        return self.rollouts[0].draw

    @property
    def responses(self) -> tuple[Rollout, ...]:
        """What is judged: the siblings, then the greedy one."""
        return self.rollouts if self.greedy is None else (*self.rollouts, self.greedy)

    def __reduce__(self) -> tuple[object, ...]:
        """Between processes a group is its texts and three arrays, not two arrays and more records a response."""
        responses = self.responses
        spans = [(span.start, span.end, span.sampled, span.version) for own in responses for span in own.spans]
        return _unpacked, (
            self.prompt,
            self.draw,
            self.prompt_text,
            self.greedy is not None,
            [(own.sample, own.text, own.stop, len(own.token_ids), len(own.spans)) for own in responses],
            np.concatenate([own.token_ids for own in responses]),
            np.concatenate([own.logprobs for own in responses]),
            np.array(spans, dtype=np.int64),
        )

    def summary(self, judgements: Sequence[Judgement], *, judging_s: float) -> GroupSummary:
        """`judgements`: one for each of `responses`."""
        if len(judgements) != len(self.responses):
            raise ValueError(f"{len(judgements)} judgements of {len(self.responses)} responses")
        greedy = None
        if self.greedy is not None:
            greedy = GreedyOutcome(
                score=_total(judgements[-1]),
                action_tokens=self.greedy.action_tokens(),
                truncated=self.greedy.stop is Stop.LENGTH,
            )
        return GroupSummary(
            draw=self.draw,
            prompt_id=self.prompt.id,
            judgements=tuple(judgements),
            length_G=np.array([len(rollout.token_ids) for rollout in self.rollouts], dtype=np.int64),
            action_tokens_G=np.array([rollout.action_tokens() for rollout in self.rollouts], dtype=np.int64),
            prompt_length=len(self.prompt.token_ids),
            truncated_G=np.array([rollout.stop is Stop.LENGTH for rollout in self.rollouts]),
            greedy=greedy,
            tokens_by_version=_tokens_by_version(self.rollouts),
            judging_s=judging_s,
            repetition_G=np.array([repetition(rollout.token_ids) for rollout in self.rollouts], dtype=np.float64),
            digest_G=np.array([digest(rollout.text) for rollout in self.rollouts], dtype=np.int64),
            answer_digest=digest(self.prompt.answer.strip() or f"the answer to {self.prompt.id}"),
        )


def _unpacked(
    prompt: Prompt,
    draw: int,
    prompt_text: str,
    has_greedy: bool,
    described: Sequence[tuple[int, str, Stop, int, int]],
    token_ids: np.ndarray,
    logprobs: np.ndarray,
    spans: np.ndarray,
) -> Group:
    """The group that `Group.__reduce__` took apart. Its arrays are views: Ray's store hands them out uncopied."""
    cut = [
        Span(start=start, end=end, sampled=bool(sampled), version=version)
        for start, end, sampled, version in spans.tolist()
    ]
    responses, token, span = [], 0, 0
    for sample, text, stop, length, num_spans in described:
        responses.append(
            Rollout(
                prompt=prompt,
                draw=draw,
                sample=sample,
                text=text,
                token_ids=token_ids[token : token + length],
                logprobs=logprobs[token : token + length],
                spans=tuple(cut[span : span + num_spans]),
                stop=stop,
            )
        )
        token, span = token + length, span + num_spans
    siblings = len(responses) - has_greedy
    return Group(
        rollouts=tuple(responses[:siblings]),
        greedy=responses[siblings] if has_greedy else None,
        prompt_text=prompt_text,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout and what the reward said of it."""

    rollout: Rollout
    judgement: Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyOutcome:
    """How a group's greedy response ended."""

    score: float
    """NaN where it could not be judged."""
    action_tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSummary:
    """What was said of a group, and what the driver decides on; the tokens stay where they were made.

    Example:
        GroupSummary(draw=7, prompt_id="arithmetic-1234", judgements=(Score(...), Failure(...)), length_G=[3, 3],
                     action_tokens_G=[3, 3], prompt_length=9, truncated_G=[False, False], greedy=None,
                     tokens_by_version={2: 6}, judging_s=0.002, repetition_G=[0.0, 0.0], digest_G=[-81, 4096],
                     answer_digest=-81)
    """

    draw: int
    prompt_id: str
    judgements: tuple[Judgement, ...]
    """Of the siblings in sample order, then of the greedy response."""
    length_G: np.ndarray
    """int64: response tokens."""
    action_tokens_G: np.ndarray
    """int64: response tokens that may be trained on."""
    prompt_length: int
    truncated_G: np.ndarray
    greedy: GreedyOutcome | None
    """None where the algorithm did not ask for one."""
    tokens_by_version: Mapping[int, int]
    """How many of the siblings' tokens each version of the weights sampled."""
    judging_s: float
    """That the reward took for all of them."""
    repetition_G: np.ndarray
    """float64: share of the response that stands in it already."""
    digest_G: np.ndarray
    """int64: a hash of the response's text, case and white space set aside."""
    answer_digest: int
    """The same hash of the prompt's answer; of the prompt itself where it has none."""

    @property
    def score_G(self) -> np.ndarray:
        """float64; NaN exactly where the response could not be judged."""
        return np.array([_total(judgement) for judgement in self._of_siblings()], dtype=np.float64)

    def part_means(self) -> dict[str, float]:
        """Of each named part, over the judged siblings that have it."""
        scores = [judgement for judgement in self._of_siblings() if isinstance(judgement, Score)]
        names = sorted({name for score in scores for name in score.parts})
        return {name: float(np.mean([s.parts[name] for s in scores if name in s.parts])) for name in names}

    @property
    def oldest_version(self) -> int:
        return min(self.tokens_by_version)

    def failures(self) -> dict[int, Failure]:
        """By the number of their sample; the greedy response's comes after the siblings'."""
        return {sample: said for sample, said in enumerate(self.judgements) if isinstance(said, Failure)}

    def _of_siblings(self) -> tuple[Judgement, ...]:
        return self.judgements[: len(self.length_G)]


def _tokens_by_version(rollouts: Sequence[Rollout]) -> dict[int, int]:
    tokens: dict[int, int] = {}
    for span in (span for rollout in rollouts for span in rollout.spans if span.sampled):
        tokens[span.version] = tokens.get(span.version, 0) + span.end - span.start
    return tokens


def _total(judgement: Judgement) -> float:
    """NaN of what could not be judged."""
    return judgement.total if isinstance(judgement, Score) else float("nan")


# ----------------------------------------------------------------------------- learning


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One response to learn from, named by where it is.

    Example (the shorter one of two siblings of 3 and 5 action tokens):
        Row(draw=7, sample=0, reward=1.0, prompt_tokens=8)
    """

    draw: int
    sample: int
    reward: float
    """Of the outcome, shaped; what the divergence from the reference costs is not yet taken off."""
    prompt_tokens: int
    """Action tokens of all responses to its prompt in the same optimizer step: the weights of `prompt-mean`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The denominators of one optimizer step, counted once over all ranks and micro-batches.

    Example:
        Totals(tokens=1024, sequences=256, prompts=32, horizon=8)
    """

    tokens: int
    """Action tokens."""
    sequences: int
    """Responses with at least one action token."""
    prompts: int
    """Draws with at least one action token; of an offline stage its lessons."""
    horizon: int
    """The response length limit: the constant of `seq-mean-token-sum-norm`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One optimizer step of one rank: which rows it learns from, and the totals that all ranks share."""

    rows: tuple[Row, ...]
    totals: Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows as tensors. The loss sees responses only, right-padded; `context` holds what the model reads.

    Example (a prompt of 2 tokens, responses of 3 and 1):
        Batch(context=(tensor([5, 6, 7, 8, 9]), tensor([5, 6, 7])), prompt_lengths=(2, 2), prompts=(0, 0),
              token_ids_BT=[[7, 8, 9], [7, 0, 0]], mask_BT=[[1, 1, 1], [1, 0, 0]],
              rollout_logprobs_BT=..., version_BT=..., reward_B=..., prompt_tokens_B=...)
    """

    context: tuple[Tensor, ...]
    """A row's prompt and response, [prompt + T_i] int64 each."""
    prompt_lengths: tuple[int, ...]
    prompts: tuple[int, ...]
    """A number for each row's prompt: rows of one number have the same prompt, which packed rows hold once."""
    token_ids_BT: Tensor
    mask_BT: Tensor
    """bool: tokens that are trained on; False on padding and on tokens the policy did not write."""
    rollout_logprobs_BT: Tensor
    """float32; 0 where there is no token. NaN-free by construction, so that differences are defined everywhere."""
    version_BT: Tensor
    """int64: the weights that sampled each token; 0 where there is none."""
    reward_B: Tensor
    """float32 outcome rewards."""
    prompt_tokens_B: Tensor
    """int64: see `Row`."""

    def __len__(self) -> int:
        return len(self.context)

    def lengths(self) -> tuple[int, ...]:
        return tuple(len(tokens) for tokens in self.context)

    def sampled_by_BT(self, version: int) -> Tensor:
        """[B, T] bool: tokens on which a trainer with these weights and the rollout engine must agree. Those of
        responses that older weights began are not among them: keys and values may still be of those."""
        mask_BT, own_BT = self.mask_BT, self.version_BT == version
        return mask_BT & (own_BT | ~mask_BT).all(dim=-1, keepdim=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """What a language model says of the tokens of a batch, at the sampling temperature, in float32."""

    logprobs_BT: Tensor
    """0 where there is no token."""
    entropy_BT: Tensor
    """Of the whole distribution at each position; 0 where there is no token. With a gradient where the algorithm's
    `needs` ask for one."""


class MissingOutput(LookupError):
    """A loss read a model output that its algorithm did not list among its needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutputs:
    """What frozen models said of a batch before the update: checked once against what the algorithm needs.

    Reading an output that was not asked for raises `MissingOutput`.
    """

    tensors: Mapping[str, Tensor]

    def _read(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise MissingOutput(f"the loss reads {name}, but the algorithm's `needs` do not ask for it")
        return self.tensors[name]

    @property
    def old_logprobs_BT(self) -> Tensor:
        """Of the policy at the start of the step."""
        return self._read("old_logprobs_BT")

    @property
    def reference_logprobs_BT(self) -> Tensor:
        return self._read("reference_logprobs_BT")

    @property
    def values_BT(self) -> Tensor:
        """Of the critic at the start of the step: what it expects before each token."""
        return self._read("values_BT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Who gets the blame, token by token."""

    advantages_BT: Tensor
    returns_BT: Tensor
    """What the critic should have expected before each token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """What a policy loss reads of the past: the batch, the models' outputs on it, the credit."""

    batch: Batch
    outputs: ModelOutputs
    credit: Credit


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmState:
    """What an algorithm carries from step to step: plain numbers, checkpointed."""

    kl_coef: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A micro-batch's share of an optimizer step's loss.

    `value` and every metric are *contributions*: summed over micro-batches and ranks they give the step's figure,
    because every term is divided by the step's `Totals`.
    """

    value: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What an algorithm asks for before it learns from a batch, and of the policy while it learns."""

    reference: bool = False
    """What the frozen policy says of the responses."""
    critic: bool = False
    """What a critic expects before each token."""
    greedy: bool = False
    """One more response to each prompt, without chance, to compare the others with."""
    old_logprobs: bool = False
    """The policy's log-probs before the first update; the loss has its own without asking."""
    recount: bool = False
    """Some action tokens may leave the step once the policy has looked at them: totals are counted again."""
    entropy_gradient: bool = False


class PolicyObjective(Protocol):
    """The part of an algorithm that travels to the trainers: they know its shape, not which one it is."""

    @property
    def needs(self) -> Needs: ...

    @property
    def whiten(self) -> bool: ...

    @property
    def whiten_ddof(self) -> int: ...

    def divergence(self, batch: Batch, outputs: ModelOutputs) -> Tensor: ...

    def token_credit(
        self, batch: Batch, outputs: ModelOutputs, advantage_B: Tensor, state: AlgorithmState
    ) -> Credit: ...

    def counted(self, experience: Experience) -> Tensor: ...

    def policy_loss(
        self, policy: TokenLogprobs, experience: Experience, totals: Totals, state: AlgorithmState
    ) -> Loss: ...

    def value_loss(self, values_BT: Tensor, experience: Experience, totals: Totals) -> Loss: ...


# ----------------------------------------------------------------------------- weights


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightEntry:
    """Where one tensor lies in a weight manifest's file."""

    name: str
    """As the model's own checkpoint calls it, so that every engine can load it; an adapter's: see `WeightManifest`."""
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
    since: int
    """The version it was written for: an older one than the manifest's where it has not changed since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """One version of the policy's weights, ready to be read by every rollout engine of the node."""

    version: int
    path: str
    entries: tuple[WeightEntry, ...]
    checksum: str
    adapter: str = ""
    """The adapter_config.json of an adapter whose tensors are among the entries, under the names of PEFT's file; the
    others are the base that it is served on, and without any the base stays as it is. Empty: all are the model's."""

    @property
    def num_bytes(self) -> int:
        """Of what was written for this version."""
        return sum(entry.num_bytes for entry in self.entries if entry.since == self.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReceipt:
    """An engine's half of the handshake: what it now serves, and the checksum of what it was given."""

    version: int
    checksum: str
    num_bytes: int
