"""Measures methods on a testbed: trains, asks, traces, judges. `headwater bench` is its command line."""

from headwater.bench.running import Effects, SeedResult, run_bench
from headwater.bench.summary import Figure, Summary, judge, summarise

__all__ = ["Effects", "Figure", "SeedResult", "Summary", "judge", "run_bench", "summarise"]
