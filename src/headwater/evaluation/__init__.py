"""How good an attribution is, where the truth is known."""

from headwater.evaluation.effects import FEWEST_SUBSETS, linear_datamodeling_score, random_subsets
from headwater.evaluation.intervals import bootstrap, bootstrap_change, bootstrap_nested
from headwater.evaluation.ranking import Ranking, detection_curve, evaluate_ranking, evaluate_scores, mean_ranking

__all__ = [
    "FEWEST_SUBSETS",
    "Ranking",
    "bootstrap",
    "bootstrap_change",
    "bootstrap_nested",
    "detection_curve",
    "evaluate_ranking",
    "evaluate_scores",
    "linear_datamodeling_score",
    "mean_ranking",
    "random_subsets",
]
