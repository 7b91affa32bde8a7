"""A model's chat template: how turns are written down, and which of the tokens are an answer's own."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from engine.data.base import Conversation, DataError
from workers.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@functools.cache
def load_tokenizer(path: str, chat_template: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder or hub id; `chat_template` names a file to take instead of its own."""
    from workers import tokenizer as tokenizers  # transformers takes seconds; a mistake in the settings should not

    try:
        tokenizer = tokenizers.load_tokenizer(path)
    except (OSError, ValueError) as error:
        raise DataError(f"no tokenizer: {error}", where=path, advice="Set model.path to a model's folder.") from error
    if chat_template:
        tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
    return tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A conversation as tokens.

    Example:
        Written(token_ids=(3, 7, 8, 1, 4, 9, 10, 1), trained=(False, False, False, False, False, True, True, True))
    """

    token_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    """The answers' own tokens, each up to its end token."""


class Template:
    """One tokenizer's chat template.

    Which tokens are an answer's is what the template itself marks (`{% generation %}`), where it does; otherwise a turn
    is what is added when the conversation is written with it, and a template that then rewrites earlier turns is
    refused: what the policy would have read is not what would be trained on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        source = tokenizer.chat_template or ""
        self._text = source if isinstance(source, str) else "\n".join(map(str, source))
        self._marks_answers = GENERATION_MARK.search(self._text) is not None
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = frozenset(added | set(tokenizer.all_special_ids))
        # Nothing of a text may open or close a turn.
        names = sorted(map(str, tokenizer.convert_ids_to_tokens(sorted(self._special))), key=len, reverse=True)
        self._forged = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def prompt(self, conversation: Conversation) -> tuple[int, ...]:
        """Up to where an answer begins."""
        self._refuse_what_it_cannot_write(conversation)
        return self._render(conversation, conversation.messages, add_generation_prompt=True)

    def written(self, conversation: Conversation, *, first_answer: int) -> Written:
        """The whole; answers from message `first_answer` on are trained on. Raises DataError where none is."""
        self._refuse_what_it_cannot_write(conversation)
        messages = conversation.messages
        turns = [turn for turn, message in enumerate(messages) if message.role == "assistant" and turn >= first_answer]
        if not turns:
            raise DataError(
                "no assistant turn.", where=conversation.id, advice="There is nothing to learn: leave it out."
            )
        written = self._marked(conversation, turns[0]) if self._marks_answers else self._grown(conversation, turns)
        if not any(written.trained):
            raise DataError(
                f"the chat template of {self.tokenizer.name_or_path} writes nothing for its answers.",
                where=conversation.id,
                advice="Leave the row out, or give rendering.chat_template.",
            )
        return written

    def _marked(self, conversation: Conversation, first_turn: int) -> Written:
        """As the template's own marks say."""
        token_ids, marks = self._render_marked(conversation)
        if any(message.role == "assistant" for message in conversation.messages[:first_turn]):
            asked = self._render(conversation, conversation.messages[:first_turn], add_generation_prompt=True)
            self._refuse_rewriting(conversation, first_turn, asked == token_ids[: len(asked)])
            marks = tuple(mark and position >= len(asked) for position, mark in enumerate(marks))
        return Written(token_ids=token_ids, trained=marks)

    def _grown(self, conversation: Conversation, turns: Sequence[int]) -> Written:
        """What each answer adds to the conversation before it."""
        if conversation.messages[0].role == "assistant":
            raise DataError("it begins with the assistant.", where=conversation.id, advice="Begin with a user turn.")
        whole = self._render(conversation, conversation.messages, add_generation_prompt=False)
        trained = [False] * len(whole)
        for turn in turns:
            asked = self._render(conversation, conversation.messages[:turn], add_generation_prompt=True)
            is_last = turn + 1 == len(conversation.messages)
            answered = (
                whole
                if is_last
                else self._render(conversation, conversation.messages[: turn + 1], add_generation_prompt=False)
            )
            only_appends = answered[: len(asked)] == asked and whole[: len(answered)] == answered
            self._refuse_rewriting(conversation, turn, only_appends)
            end = self._end_of_turn(whole, len(asked), len(answered))
            trained[len(asked) : end] = [True] * (end - len(asked))
        return Written(token_ids=whole, trained=tuple(trained))

    def _refuse_rewriting(self, conversation: Conversation, turn: int, only_appends: bool) -> None:
        if not only_appends:
            raise DataError(
                f"the chat template of {self.tokenizer.name_or_path} writes earlier turns differently once message "
                f"{turn + 1} is there, so what the policy would have read is not what would be trained on.",
                where=conversation.id,
                advice="Use a chat template that only appends or marks its answers ({% generation %}), or learn from "
                "the last answer alone (algo.turns=last).",
            )

    def _end_of_turn(self, token_ids: tuple[int, ...], start: int, end: int) -> int:
        """Without the blanks that a template writes behind its end token: the policy never samples them."""
        last = max((at for at in range(start, end) if token_ids[at] in self._special), default=end - 1)
        return last + 1 if not self.tokenizer.decode(token_ids[last + 1 : end]).strip() else end

    # ------------------------------------------------------------------ the library's own rendering

    def _render(
        self, conversation: Conversation, messages: Sequence[Message], *, add_generation_prompt: bool
    ) -> tuple[int, ...]:
        return tuple(
            self._apply(conversation, messages, add_generation_prompt=add_generation_prompt, return_dict=False)
        )

    def _render_marked(self, conversation: Conversation) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        rendered = self._apply(conversation, conversation.messages, return_dict=True, return_assistant_tokens_mask=True)
        return tuple(rendered["input_ids"]), tuple(map(bool, rendered["assistant_masks"]))

    def _apply(self, conversation: Conversation, messages: Sequence[Message], **settings: object) -> Any:
        tools = [dict(tool) for tool in conversation.tools] or None
        try:
            return self.tokenizer.apply_chat_template([_turn(message) for message in messages], tools=tools, **settings)
        except TemplateError as error:
            raise DataError(
                f"the chat template of {self.tokenizer.name_or_path} refuses it: {error}.",
                where=conversation.id,
                advice="Mend the row's roles, or give another template in rendering.chat_template.",
            ) from error

    def _refuse_what_it_cannot_write(self, conversation: Conversation) -> None:
        """A template leaves out in silence what it has no words for."""
        name, where = self.tokenizer.name_or_path, conversation.id
        if not self._text:
            raise DataError(
                f"the tokenizer of {name} has no chat template, so there is no way to write turns down.",
                where=where,
                advice="Give one in rendering.chat_template, or take an instruction-tuned model.",
            )
        has_calls = any(message.tool_calls for message in conversation.messages)
        for has, word in ((bool(conversation.tools), "tools"), (has_calls, "tool_calls")):
            if has and word not in self._text:
                raise DataError(
                    f"it has {word}, and the chat template of {name} does not write them.",
                    where=where,
                    advice="Give a template that does in rendering.chat_template "
                    "(examples/chat_templates/chatml.jinja is one).",
                )
        if conversation.images:
            raise DataError(
                "it has images.", where=where, advice="Only text is learned from: leave the row out.", kind="images"
            )
        for number, message in enumerate(conversation.messages, start=1):
            forged = self._forged.search(message.content)
            if forged:
                raise DataError(
                    f"message {number} has {forged[0]} in its text, which the model would read as the template's own.",
                    where=where,
                    advice="Mend the text, or leave the row out.",
                    kind="special token in a text",
                )


def _turn(message: Message) -> dict[str, object]:
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": message.content} | ({"tool_calls": calls} if calls else {})
