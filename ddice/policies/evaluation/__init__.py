"""Playing episodes: a batched policy in many copies of the evaluation environment, and the
scores that come out.
"""

from ddice.data.trial import require_fit, require_playable
from ddice.policies.evaluation.evaluating import common_environment, evaluate, evaluate_pair
from ddice.policies.evaluation.moment import Moment
from ddice.policies.evaluation.pairing import PairedEvaluation, paired
from ddice.policies.evaluation.playing import Actor, episode_seed
from ddice.policies.evaluation.scores import Evaluation

__all__ = [
    "Actor",
    "Evaluation",
    "Moment",
    "PairedEvaluation",
    "common_environment",
    "episode_seed",
    "evaluate",
    "evaluate_pair",
    "paired",
    "require_fit",
    "require_playable",
]
