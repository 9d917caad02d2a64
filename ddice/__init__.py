"""ddice: stationary distribution correction (DICE), then policy extraction with diffusion models.

Data and scores: load_dataset, evaluate. Parts: DiffusionPrior here, backends in
ddice.dice_backends, extractors in ddice.extractors.
"""

from importlib.metadata import version

from ddice.data import load_dataset
from ddice.evaluation import evaluate
from ddice.policy import Policy, load_policy
from ddice.prior import DiffusionPrior

__version__ = version("ddice")

__all__ = ["DiffusionPrior", "Policy", "evaluate", "load_dataset", "load_policy"]
