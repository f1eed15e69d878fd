"""How good an attribution is, where the truth is known."""

from headwater.evaluation.intervals import bootstrap
from headwater.evaluation.ranking import Ranking, evaluate_ranking, evaluate_scores, mean_ranking

__all__ = ["Ranking", "bootstrap", "evaluate_ranking", "evaluate_scores", "mean_ranking"]
