"""ddice: stationary distribution correction (DICE), then policy extraction with diffusion models.

Data and scores: load_dataset, evaluate. Parts: DiffusionPrior here, backends in
ddice.dice_backends, extractors in ddice.extractors.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

import ddice.core.moved  # noqa: F401  (old import paths)
from ddice.core.on_demand import on_demand

if TYPE_CHECKING:
    from ddice.data import load_dataset
    from ddice.diffusion.prior import DiffusionPrior
    from ddice.policies.evaluation import evaluate
    from ddice.policies.policy import Policy, load_policy
else:
    # PyTorch takes seconds: the command line begins without, and hears Ctrl-C.
    __getattr__ = on_demand(
        "ddice",
        {
            "DiffusionPrior": "ddice.diffusion.prior",
            "Policy": "ddice.policies.policy",
            "evaluate": "ddice.policies.evaluation",
            "load_dataset": "ddice.data",
            "load_policy": "ddice.policies.policy",
        },
    )

__version__ = version("ddice")

__all__ = ["DiffusionPrior", "Policy", "evaluate", "load_dataset", "load_policy"]
