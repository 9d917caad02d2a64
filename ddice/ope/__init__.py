"""Off-policy evaluation and model selection without an environment.

Ratios estimate the value of the *regularised optimum* of a backend: they rank temperatures and
checkpoints. The *extracted* policy, hence the number of candidates, guidance scale and solver, is
ranked by fitted Q evaluation with its own actions.
"""

from ddice.ope.fitted_q import ActionCache, FittedQ, FittedQEvaluation, sample_actions
from ddice.ope.intervals import Estimate, rank_correlation
from ddice.ope.ratio_value import RatioEstimate, estimate_value, standard_features

__all__ = [
    "ActionCache",
    "Estimate",
    "FittedQ",
    "FittedQEvaluation",
    "RatioEstimate",
    "estimate_value",
    "rank_correlation",
    "sample_actions",
    "standard_features",
]
