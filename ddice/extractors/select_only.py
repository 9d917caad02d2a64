"""Select-only: K candidates of the unguided prior, the best by Q (as IDQL does); with one
candidate it is the behaviour policy.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.data import Batch, Spec
from ddice.diffusion.samplers import DiffusionSampler
from ddice.diffusion.trained_prior import TrainedPrior
from ddice.extractors.base import DiffusionConfig, Extractor
from ddice.parts import loop
from ddice.parts.part import Optimizer


class SelectOnly(DiffusionConfig):
    """Nothing is trained beyond prior and Q."""

    kind: Literal["select_only"] = "select_only"
    candidates: int = Field(
        16,
        ge=1,
        description=(
            "K, actions of the prior sampled per decision; 1 is the behaviour policy and needs no Q"
        ),
    )

    needs_ratio = False

    def build(
        self, spec: Spec, seed: Seed = 0, prior: TrainedPrior | None = None
    ) -> SelectOnlyExtractor:
        if prior is None:
            raise ValueError("SelectOnly needs a prior: build(spec, seed=..., prior=...)")
        return SelectOnlyExtractor(self, spec, seed, prior)


class SelectOnlyExtractor(Extractor):
    """The prior as it is."""

    config: SelectOnly
    prior: TrainedPrior
    trains: ClassVar[bool] = False

    def __init__(self, config: SelectOnly, spec: Spec, seed: Seed, prior: TrainedPrior):
        super().__init__(config, Optimizer(), prior.batch_size, spec, seed, prior)

    def update(self, batch: Batch, *, step: int, log_ratio: Tensor | None = None) -> loop.Metrics:
        """Nothing to train."""
        self.expect_step(step)
        self.step = step + 1
        return {}

    def sampler(self) -> DiffusionSampler:
        # The averaged weights of the prior, unguided: no ratio enters, Q alone improves the policy.
        return DiffusionSampler(
            self.config.diffusion(self.prior), self.prior.encoder, self.prior.averaged, None
        )
