"""Turns of a conversation, as OpenAI, ShareGPT and LLaMA-Factory write them, as one kind of record.

    {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": ..., "arguments": ...}}]}
    {"from": "function_call", "value": "{\\"name\\": ..., \\"arguments\\": ...}"}

are the same `Message`, and so are `observation` and `tool`, `human` and `user`, `gpt` and `assistant`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.data.rows import FileRow
from workers.records import Message, ToolCall

CALL = "call"
"""Not a role of a message: the assistant's turn, whose text is a call of a function."""
ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_call": CALL,
}
IMAGE = "<image>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """How a data set's turns are written, where it says so itself.

    Example:
        Tags(role="role", content="content", roles=(("user", "user"), ("bot", "assistant")))
    """

    role: str
    content: str
    roles: tuple[tuple[str, str], ...]
    """Each of its own names with ours."""


def system(prompt: str) -> tuple[Message, ...]:
    """The turn that opens a conversation, if there is one."""
    return (Message(role="system", content=prompt),) if prompt else ()


def ask(text: str) -> Message:
    return Message(role="user", content=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnReader:
    """Messages out of the columns of a row."""

    tags: Tags | None = None
    longest_text: int = 0
    """Characters of a turn; 0 is no bound."""

    def turns(self, row: FileRow, column: str) -> tuple[Message, ...]:
        """A column with a list of turns; where a file's type has no lists, it is JSON."""
        value = row.column(column)
        if type(value) is str and value.startswith("["):
            value = _parsed(value)
        return self.turns_of(row, column, value)

    def turns_of(self, row: FileRow, column: str, value: Any) -> tuple[Message, ...]:
        if type(value) is not list or not value:
            raise row.bad("not a list of messages", column, value, "Give [{role, content}, ...].")
        messages = [self._message(row, column, turn) for turn in value]
        # An empty system turn says as much as none.
        return tuple(message for message in messages if message is not None)

    def prompt(self, row: FileRow, column: str) -> tuple[Message, ...]:
        """What is asked: a text, or a list of turns."""
        value = row.column(column)
        if type(value) is list:
            return self.turns_of(row, column, value)
        return (ask(row.checked(value, column, longest=self.longest_text)),)

    def answer(self, row: FileRow, column: str) -> tuple[Message, ...]:
        """What is answered: a text, one turn or a list of turns."""
        value = row.column(column)
        if type(value) is list:
            return self.turns_of(row, column, value)
        if type(value) is dict:
            return self.turns_of(row, column, [value])
        return (Message(role="assistant", content=row.checked(value, column, longest=self.longest_text)),)

    def _message(self, row: FileRow, column: str, turn: Any) -> Message | None:
        said, content, tool_calls = self._parts(row, column, turn)
        roles = dict(self.tags.roles) if self.tags else ROLES
        role = roles.get(said) if type(said) is str else None
        if role is None:
            raise row.bad("unknown role", column, turn, f"The role is one of: {', '.join(roles)}.")
        if role == CALL:
            text = row.checked(content, column, longest=self.longest_text)
            return Message(role="assistant", content="", tool_calls=_calls(row, column, _parsed(text), turn))
        calls = _calls(row, column, tool_calls, turn) if tool_calls else ()
        if type(content) is list:
            content = _joined(row, column, content)
        elif content is None and calls:
            content = ""
        may_be_empty = bool(calls) or role in ("tool", "system")
        text = row.checked(content, column, longest=self.longest_text, may_be_empty=may_be_empty)
        return None if role == "system" and not text.strip() else Message(role=role, content=text, tool_calls=calls)

    def _parts(self, row: FileRow, column: str, turn: Any) -> tuple[Any, Any, Any]:
        """Role, content and calls as they are written."""
        if type(turn) is dict:
            if self.tags is not None:
                if self.tags.role in turn:
                    return turn[self.tags.role], turn.get(self.tags.content), turn.get("tool_calls")
            elif "role" in turn and ("content" in turn or turn.get("tool_calls")):
                return turn["role"], turn.get("content"), turn.get("tool_calls")
            elif "from" in turn and "value" in turn:
                return turn["from"], turn["value"], None
        raise row.bad("not a message", column, turn, "Give {role, content} or {from, value}.")


def _joined(row: FileRow, column: str, parts: list[Any]) -> str:
    """The text of OpenAI's content parts."""
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    if not parts or None in texts:
        raise row.bad(
            "its content has parts that are no text", column, parts, f"Write {IMAGE}, and name the file in images."
        )
    return "".join(texts)


def _calls(row: FileRow, column: str, calls: Any, turn: Any) -> tuple[ToolCall, ...]:
    """OpenAI's tool calls, or LLaMA-Factory's {name, arguments}: one or a list."""
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        arguments = function.get("arguments", {}) if isinstance(function, dict) else None
        if isinstance(arguments, str):
            arguments = _parsed(arguments) if arguments.strip() else {}
        if not isinstance(arguments, dict) or not isinstance(function.get("name"), str):
            raise row.bad(
                "not a call of a function", column, turn, 'Give {"name": ..., "arguments": {...}}, or a list of these.'
            )
        found.append(ToolCall(name=function["name"], arguments=arguments))
    return tuple(found)


def tools_of(row: FileRow, column: str) -> tuple[Mapping[str, object], ...]:
    """Descriptions of functions as OpenAI writes them, from that form or the bare one, as JSON or as a list."""
    value = row.values.get(column)
    if not value:
        return ()
    tools = _known_tools(value) if isinstance(value, str) else _tools(value)
    if tools is None:
        advice = "Give a list of functions, each with a name."
        raise row.bad("not a list of tools", column, value, advice)
    return tools


@functools.lru_cache(maxsize=4096)
def _known_tools(text: str) -> tuple[Mapping[str, object], ...] | None:
    """Many rows have the same tools."""
    return _tools(_parsed(text))


def _tools(value: Any) -> tuple[Mapping[str, object], ...] | None:
    if not isinstance(value, list):
        return None
    functions = [tool.get("function", tool) if isinstance(tool, dict) else None for tool in value]
    if not all(isinstance(function, dict) and isinstance(function.get("name"), str) for function in functions):
        return None
    return tuple({"type": "function", "function": function} for function in functions)


def _parsed(text: str) -> Any:
    """None where it is no JSON: what is made of it refuses that."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def refuse_empty(messages: tuple[Message, ...], row: FileRow, column: str) -> None:
    """A conversation begins with somebody who asks."""
    first = next((message for message in messages if message.role not in ("system", "developer")), None)
    if first is None or first.role == "assistant":
        raise row.bad(
            "nothing is asked before the assistant's first turn",
            column,
            row.values.get(column),
            "Begin with a user turn.",
        )
