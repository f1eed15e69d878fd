"""Chat messages: one mapping with a role and a content per turn, checked on the way in and shown on the way out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from headwater.errors import DataError

Message = Mapping[str, Any]
"""One turn: "role" (str) and "content" (str, or a list of text parts), and whatever else its chat template reads."""

_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


def checked_text(value: object, where: str, what: str) -> str:
    """Returns the value where it is text that a tokenizer can read.

    Args:
        value: what the row holds.
        where: file and line, for the message of the error.
        what: what the value is meant to be, for the message of the error.

    Raises:
        DataError: for null, anything but a string, and half surrogate pairs, which have no UTF-8 form.
    """
    if value is None:
        raise DataError(
            f"{where}: {what} is null", expected="a string", fix="fill the value in or leave the row out of the file"
        )
    if not isinstance(value, str):
        raise DataError(
            f"{where}: {what} is {_named(value)}",
            expected="a string",
            fix="turn the value into text, or name other columns",
        )
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: {what} holds half of a surrogate pair at character {error.start}",
                expected="text with a UTF-8 form",
                cause="an emoji cut in two by an earlier step",
                fix="repair or drop that character",
            ) from error
    return value


def checked_messages(value: object, where: str, what: str) -> tuple[Message, ...]:
    """Returns a conversation as a tuple of messages; {"from", "value"} turns (ShareGPT) become {"role", "content"}.

    Keys that are null are dropped: Parquet and `datasets` fill every missing key with null, and chat templates differ
    in what they make of it. ShareGPT's roles "human" and "gpt" become "user" and "assistant".

    Raises:
        DataError: for anything that is not a non-empty list of such turns, and for parts that are not text.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise DataError(
            f"{where}: {what} is {_named(value)}",
            expected='a list of {"role", "content"} messages',
            fix="write the conversation as a list of messages, or name other columns",
        )
    if not value:
        raise DataError(
            f"{where}: {what} is an empty list",
            expected="at least one message",
            fix="fill the conversation in or leave the row out of the file",
        )
    return tuple(_checked_message(turn, where, f"{what}[{index}]") for index, turn in enumerate(value))


def is_conversation(value: object) -> bool:
    """Whether the value looks like a list of messages rather than a string."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def message_text(message: Message) -> str:
    """The content of one message as text; tool calls follow it as JSON."""
    content = message.get("content")
    text = content if isinstance(content, str) else "".join(part["text"] for part in content or ())
    calls = message.get("tool_calls")
    return text + json.dumps(calls, ensure_ascii=False, default=str) if calls else text


def conversation_text(messages: Sequence[Message]) -> str:
    """A conversation for people: each turn on its own line(s), its role in front, as in "user: Hello"."""
    return "\n".join(f"{message['role']}: {message_text(message)}" for message in messages)


def _checked_message(turn: object, where: str, what: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(
            f"{where}: {what} is {_named(turn)}",
            expected='a {"role", "content"} message',
            fix="write every turn as an object with a role and a content",
        )
    message = {str(key): item for key, item in turn.items() if item is not None}
    if "role" not in message and "from" in message:
        role = message.pop("from")
        message = {"role": _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role, **message}
        if "value" in message:
            message["content"] = message.pop("value")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise DataError(
            f"{where}: {what} has no role but the keys {', '.join(sorted(message)) or 'none'}",
            expected='a message with "role" and "content"',
            fix='name the speaker of every turn in "role"',
        )
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts = [dict(part) if isinstance(part, Mapping) else part for part in content]
        message["content"] = [
            {key: item for key, item in part.items() if item is not None} if isinstance(part, dict) else part
            for part in parts
        ]
        for index, part in enumerate(message["content"]):
            if not isinstance(part, dict) or part.get("type") != "text":
                raise DataError(
                    f"{where}: {what} has a content part that is not text",
                    expected='text, or parts of {"type": "text", "text": ...}',
                    cause="images and sound are not supported",
                    fix="leave such rows out",
                )
            checked_text(part.get("text"), where, f"{what} content part {index}")
    elif content is not None or not message.get("tool_calls"):
        checked_text(content, where, f'{what}["content"]')
    return message


def _named(value: object) -> str:
    """A value and its type, short enough for one line."""
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__})"
