"""Questions and conversations into tokens, once, by the model's own chat template."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from engine.algorithms.base import Objective
from engine.data.base import Conversation, DataError, OfflineData, Question, RowKind, Split
from workers.lessons import Example, Lesson, Part
from workers.records import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@functools.cache
def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder or hub id; it must have a chat template."""
    from workers import tokenizer as tokenizers  # transformers takes seconds; a mistake in the settings should not

    try:
        tokenizer = tokenizers.load_tokenizer(path)
    except (OSError, ValueError) as error:
        raise DataError(f"no tokenizer: {error}", where=path, advice="Set model.path to a model's folder.") from error
    if tokenizer.chat_template is None:
        raise DataError(
            "the tokenizer has no chat template, so there is no way to write a question down.",
            where=path,
            advice="Put a chat_template.jinja into the model's folder, or take an instruction-tuned model.",
        )
    return tokenizer


def render_prompts(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, context_length: int, max_response_tokens: int
) -> tuple[Prompt, ...]:
    """Each question as the tokens that the policy answers."""
    room = context_length - max_response_tokens
    prompts = []
    for question in questions:
        token_ids = _render(question.messages, tokenizer, question.id, add_generation_prompt=True)
        if len(token_ids) > room:
            raise DataError(
                f"the prompt has {len(token_ids)} tokens; model.context_length ({context_length}) less "
                f"rollout.max_response_tokens ({max_response_tokens}) leaves room for {room}.",
                where=question.id,
                advice="Set a larger model.context_length, or leave the row out.",
            )
        prompts.append(
            Prompt(
                id=question.id,
                messages=question.messages,
                token_ids=token_ids,
                answer=question.answer,
                row=question.row,
            )
        )
    return tuple(prompts)


def render_lessons(
    data: OfflineData, objective: Objective, split: Split, tokenizer: PreTrainedTokenizerBase, context_length: int
) -> tuple[Lesson, ...]:
    """The rows of a data set as an objective learns from them."""
    match objective.rows:
        case RowKind.CONVERSATIONS:
            return render_conversations(data.conversations(split), tokenizer, context_length)
    raise NotImplementedError(objective.rows)


def render_conversations(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, context_length: int
) -> tuple[Lesson, ...]:
    """Each conversation as tokens, of which the assistant's turns and their end tokens are trained on."""
    end_tokens = _special_tokens(tokenizer)
    lessons = []
    for conversation in conversations:
        token_ids = _render(conversation.messages, tokenizer, conversation.id, add_generation_prompt=False)
        if len(token_ids) > context_length:
            raise DataError(
                f"the conversation has {len(token_ids)} tokens, and model.context_length is {context_length}.",
                where=conversation.id,
                advice="Set a larger model.context_length, or leave the row out.",
            )
        trained = [False] * len(token_ids)
        for turn, message in enumerate(conversation.messages):
            if message.role == "assistant":
                start, end = _turn(conversation, turn, token_ids, tokenizer)
                end = _end_of_turn(token_ids, start, end, tokenizer, end_tokens)
                trained[start:end] = [True] * (end - start)
        if not any(trained):
            raise DataError(
                "no assistant turn.", where=conversation.id, advice="There is nothing to learn: leave it out."
            )
        first = trained.index(True)
        example = Example(part=Part.TEXT, token_ids=token_ids, prompt_length=first, mask=tuple(trained[first:]))
        lessons.append(Lesson(id=conversation.id, examples=(example,), margin=0.0))
    return tuple(lessons)


def _turn(
    conversation: Conversation, turn: int, token_ids: tuple[int, ...], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, int]:
    """Where in `token_ids` an assistant turn begins and ends, found by rendering the conversation up to it."""
    before, until = conversation.messages[:turn], conversation.messages[: turn + 1]
    if not before:
        raise DataError("it begins with the assistant.", where=conversation.id, advice="Begin with a user turn.")
    asked = _render(before, tokenizer, conversation.id, add_generation_prompt=True)
    answered = _render(until, tokenizer, conversation.id, add_generation_prompt=False)
    if answered[: len(asked)] != asked or token_ids[: len(answered)] != answered:
        raise DataError(
            f"the chat template of {tokenizer.name_or_path} writes earlier turns differently once message {turn + 1} "
            "is there, so what the policy would have read is not what would be trained on.",
            where=conversation.id,
            advice="Use a chat template that only appends, or split the conversation into one row per answer.",
        )
    return len(asked), len(answered)


def _end_of_turn(
    token_ids: tuple[int, ...], start: int, end: int, tokenizer: PreTrainedTokenizerBase, special: frozenset[int]
) -> int:
    """The turn's end without the blanks that a template writes behind its end token: the policy never samples them."""
    last = max((position for position in range(start, end) if token_ids[position] in special), default=end - 1)
    return last + 1 if not tokenizer.decode(token_ids[last + 1 : end]).strip() else end


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def _render(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, where: str, *, add_generation_prompt: bool
) -> tuple[int, ...]:
    if tokenizer.chat_template is None:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template.",
            where=where,
            advice="Put a chat_template.jinja into the model's folder, or take an instruction-tuned model.",
        )
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return tuple(
            tokenizer.apply_chat_template(turns, add_generation_prompt=add_generation_prompt, return_dict=False)
        )
    except TemplateError as error:
        raise DataError(
            f"the chat template of {tokenizer.name_or_path} refuses it: {error}.",
            where=where,
            advice="Mend the row's roles, or give the model another chat_template.jinja.",
        ) from error
