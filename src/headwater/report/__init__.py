"""What the scores say, for people: a table in the terminal, and one page that opens offline."""

from __future__ import annotations

from headwater.report.html import write_report
from headwater.report.overlap import overlap, query_words
from headwater.report.terminal import answer, answer_table

__all__ = ["answer", "answer_table", "overlap", "query_words", "write_report"]
