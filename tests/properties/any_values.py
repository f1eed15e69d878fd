"""Strategies: JSON values, texts that are nearly sound, changes of a document."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
"""Text with a UTF-8 form."""

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["user", "assistant"])
)
keys = st.one_of(
    st.sampled_from(
        ["prompt", "completion", "messages", "text", "instruction", "input", "output", "id", "role", "content", "span"]
    ),
    st.text(max_size=4),
)
values: st.SearchStrategy[Any] = st.recursive(
    leaves, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)), max_leaves=8
)
rows = st.lists(st.dictionaries(keys, values, max_size=4), max_size=4)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """A copy of a JSON document with one place replaced by any value, or taken out."""
    copy = json.loads(json.dumps(document))
    parent, key = {"": copy}, ""
    place: Any = parent
    for _ in range(draw(st.integers(0, 5))):
        inner = place[key]
        if not inner or not isinstance(inner, dict | list):
            break
        place, key = inner, draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
    if draw(st.booleans()) or key == "":
        place[key] = draw(values)
    else:
        del place[key]
    return parent[""]
