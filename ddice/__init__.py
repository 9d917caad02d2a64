"""ddice: stationary distribution correction (DICE), then policy extraction with diffusion models.

Data and scores: load_dataset, evaluate. Parts: DiffusionPrior here, backends in
ddice.dice_backends, extractors in ddice.extractors.
"""

from importlib.metadata import version

import ddice.core.moved  # noqa: F401  (old import paths)
from ddice.data import load_dataset
from ddice.diffusion.prior import DiffusionPrior
from ddice.policies.evaluation import evaluate
from ddice.policies.policy import Policy, load_policy

__version__ = version("ddice")

__all__ = ["DiffusionPrior", "Policy", "evaluate", "load_dataset", "load_policy"]
