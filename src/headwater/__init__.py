"""headwater traces what a fine-tuned language model says back to the training examples that taught it to say so.

Quick start:

    import headwater as hw

    run = hw.TrainingRun.from_pretrained("runs/sft", base="Qwen/Qwen2.5-0.5B")
    train = hw.read_examples("train.jsonl")
    query = hw.Query("The capital of Australia is", " Sydney", corrected=" Canberra")
    scores = hw.trace(run, train, [query], method=hw.DDA())
    scores.top(20)

Names are imported when they are first used, so that `import headwater` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "BM25": "headwater.methods.lexical",
    "CEA": "headwater.methods.gradient",
    "Checkpoint": "headwater.checkpoints",
    "Columns": "headwater.examples",
    "Compute": "headwater.attribution.compute",
    "DDA": "headwater.methods.dda",
    "DataError": "headwater.errors",
    "DataInf": "headwater.methods.influence",
    "DuplicateGroup": "headwater.duplicates",
    "Diagnosis": "headwater.diagnosis",
    "EmbeddingSimilarity": "headwater.methods.embedding",
    "Example": "headwater.examples",
    "Examples": "headwater.examples",
    "GradientCosine": "headwater.methods.gradient",
    "GradientDot": "headwater.methods.gradient",
    "HeadwaterError": "headwater.errors",
    "Index": "headwater.index.manifest",
    "InfluenceFunction": "headwater.methods.influence",
    "LESS": "headwater.methods.along_training",
    "LoGra": "headwater.methods.influence",
    "METHODS": "headwater.methods.table",
    "ModelError": "headwater.errors",
    "NumericalError": "headwater.errors",
    "Query": "headwater.examples",
    "Review": "headwater.cleaning",
    "ReviewRow": "headwater.cleaning",
    "RapidIn": "headwater.methods.along_training",
    "RepresentationSimilarity": "headwater.methods.representation",
    "RunError": "headwater.errors",
    "SOURCE": "headwater.methods.along_training",
    "ScoredRow": "headwater.scores",
    "Scores": "headwater.scores",
    "Selection": "headwater.selection",
    "SelfInfluence": "headwater.attribution.own",
    "Source": "headwater.sources",
    "Sources": "headwater.sources",
    "TRAK": "headwater.methods.trak",
    "TokenFormat": "headwater.examples",
    "TracIn": "headwater.methods.gradient",
    "TrackStar": "headwater.methods.trak",
    "TrainingRun": "headwater.checkpoints",
    "UsageError": "headwater.errors",
    "Verbatim": "headwater.methods.verbatim",
    "build_index": "headwater.attribution.building",
    "by_source": "headwater.sources",
    "clean": "headwater.cleaning",
    "duplicate_groups": "headwater.duplicates",
    "diagnose": "headwater.diagnosis",
    "make_method": "headwater.methods.table",
    "read_examples": "headwater.examples",
    "read_queries": "headwater.examples",
    "repair_run": "headwater.repair",
    "random_rows": "headwater.selection",
    "self_influence": "headwater.attribution.own",
    "select": "headwater.selection",
    "star": "headwater.selection",
    "trace": "headwater.attribution.loop",
    "trace_all": "headwater.attribution.loop",
    "trace_index": "headwater.attribution.indexed",
    "write_report": "headwater.report",
}

__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from headwater.attribution.building import build_index
    from headwater.attribution.compute import Compute
    from headwater.attribution.indexed import trace_index
    from headwater.attribution.loop import trace, trace_all
    from headwater.attribution.own import SelfInfluence, self_influence
    from headwater.checkpoints import Checkpoint, TrainingRun
    from headwater.cleaning import Review, ReviewRow, clean
    from headwater.diagnosis import Diagnosis, diagnose
    from headwater.duplicates import DuplicateGroup, duplicate_groups
    from headwater.errors import DataError, HeadwaterError, ModelError, NumericalError, RunError, UsageError
    from headwater.examples import Columns, Example, Examples, Query, TokenFormat, read_examples, read_queries
    from headwater.index.manifest import Index
    from headwater.methods.along_training import LESS, SOURCE, RapidIn
    from headwater.methods.dda import DDA
    from headwater.methods.embedding import EmbeddingSimilarity
    from headwater.methods.gradient import CEA, GradientCosine, GradientDot, TracIn
    from headwater.methods.influence import DataInf, InfluenceFunction, LoGra
    from headwater.methods.lexical import BM25
    from headwater.methods.representation import RepresentationSimilarity
    from headwater.methods.table import METHODS, make_method
    from headwater.methods.trak import TRAK, TrackStar
    from headwater.methods.verbatim import Verbatim
    from headwater.repair import repair_run
    from headwater.report import write_report
    from headwater.scores import ScoredRow, Scores
    from headwater.selection import Selection, random_rows, select, star
    from headwater.sources import Source, Sources, by_source


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'headwater' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
