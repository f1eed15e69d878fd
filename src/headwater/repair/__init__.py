"""Repair: remove or correct the rows that a trace found, train again, and show that the fault is gone."""

from headwater.repair.choice import Choice, ranked_rows, read_corrections, read_ids
from headwater.repair.origin import format_of, run_of
from headwater.repair.outcome import Asking, Outcome, Said, states
from headwater.repair.recipe import FoundRecipe, find_recipe
from headwater.repair.result import Comparison, Line, Repaired, Step
from headwater.repair.retraining import Command, FineTuning, own_training
from headwater.repair.running import Controls, repair

repair_run = repair
"""The same function, by the name that `headwater` exports."""

__all__ = [
    "Asking",
    "Choice",
    "Command",
    "Comparison",
    "Controls",
    "FineTuning",
    "FoundRecipe",
    "Line",
    "Outcome",
    "Repaired",
    "Said",
    "Step",
    "find_recipe",
    "format_of",
    "own_training",
    "ranked_rows",
    "read_corrections",
    "read_ids",
    "repair",
    "repair_run",
    "run_of",
    "states",
]
