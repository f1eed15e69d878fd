"""Training rows and queries: reading, identity, prompts, and the tokens that the loss counts."""

from __future__ import annotations

from headwater.examples.conventions import Columns, TemplateChoice
from headwater.examples.encoder import Encoder
from headwater.examples.example import Example, Kind
from headwater.examples.messages import Message
from headwater.examples.prompts import Template
from headwater.examples.queries import Query, differing_span, read_queries
from headwater.examples.reading import read_examples, read_records
from headwater.examples.rows import Examples
from headwater.examples.tokens import Encoded, EncodingReport, LossOn, TokenFormat

__all__ = [
    "Columns",
    "Encoded",
    "Encoder",
    "EncodingReport",
    "Example",
    "Examples",
    "Kind",
    "LossOn",
    "Message",
    "Query",
    "Template",
    "TemplateChoice",
    "TokenFormat",
    "differing_span",
    "read_examples",
    "read_queries",
    "read_records",
]
