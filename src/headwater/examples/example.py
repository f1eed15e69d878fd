"""One training row with its identity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from headwater.examples.messages import Message, conversation_text

Kind = Literal["completion", "chat", "messages", "text"]

# Columns that change what a chat template writes, as TRL reads them.
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training row.

    Args:
        id: the row's own id, else its source.
        source: "<file name>:<line>"; for Parquet and `datasets`, "<name>:<row number, from 1>".
        content_hash: 16 hexadecimal digits over what the model is trained on; equal for exact duplicates.
        kind: "completion" (prompt and completion are str), "chat" (both are messages), "messages" (prompt is (), the
            completion holds the whole conversation), "text" (prompt is "", the completion is the text).
        prompt: what comes before the completion.
        completion: what the model was taught to say.
        metadata: all other columns.
    """

    id: str
    source: str
    content_hash: str
    kind: Kind
    prompt: str | tuple[Message, ...]
    completion: str | tuple[Message, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def prompt_text(self) -> str:
        """The prompt for display and for lexical methods; each turn of a chat on its own line, role in front."""
        return shown(self.prompt)

    @property
    def completion_text(self) -> str:
        """The completion for display and for lexical methods; the whole conversation for kind "messages"."""
        return shown(self.completion)

    @property
    def text(self) -> str:
        """Prompt and completion in one."""
        joint = "\n" if self.kind == "chat" else ""
        return self.prompt_text + joint + self.completion_text


def content_hash(
    prompt: str | tuple[Message, ...], completion: str | tuple[Message, ...], metadata: Mapping[str, Any], kind: Kind
) -> str:
    """16 hexadecimal digits of BLAKE2b over the canonical JSON of what the model is trained on.

    For chats that includes the columns that the chat template reads besides the messages (tools and its own arguments).
    """
    content: dict[str, Any] = (
        {"prompt": prompt, "completion": completion} if kind in ("completion", "chat") else {kind: completion}
    )
    if kind in ("chat", "messages"):
        content |= {name: metadata[name] for name in TEMPLATE_COLUMNS if metadata.get(name) is not None}
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def shown(content: str | tuple[Message, ...]) -> str:
    return content if isinstance(content, str) else conversation_text(content)
