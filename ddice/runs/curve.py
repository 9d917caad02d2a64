"""Learning curves: which policy is played while it trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from ddice.core.config import Config, from_kind
from ddice.extractors import SelectOnly
from ddice.extractors.base import ExtractorConfig, SelectingConfig

Episodes = Annotated[int, Field(ge=1, description="of each point of the curve")]
# Enough to see a curve rise, at a fifth of the price of a usual evaluation.
EPISODES = 20


class ExtractorCurve(Config):
    """The policy of the recipe, while its extractor trains; of an extractor that is not trained,
    while the backend does, whose Q it follows.
    """

    kind: Literal["extractor"] = "extractor"
    episodes: Episodes = EPISODES

    def played(self, extractor: ExtractorConfig) -> ExtractorConfig:
        """The extractor whose policy is played."""
        return extractor


class BackendCurve(Config):
    """The best of K actions of the trained prior by the backend's Q, while the backend trains: what
    its Q is worth, before anything is extracted.
    """

    kind: Literal["backend"] = "backend"
    episodes: Episodes = EPISODES
    candidates: int | None = Field(
        None, ge=2, description="K; as many as the extractor has unless given"
    )

    def played(self, extractor: ExtractorConfig) -> ExtractorConfig:
        """Select-only, which samples and chooses as the extractor does. Raises ValueError where one
        candidate leaves nothing to choose.
        """
        own = extractor.candidates if isinstance(extractor, SelectingConfig) else 1
        candidates = self.candidates or own
        if candidates == 1:
            raise ValueError(
                "the curve of the backend plays the best of several actions, and the extractor has "
                "candidates = 1: say how many, evaluation.curve.candidates"
            )
        acting = {
            name: getattr(extractor, name)
            for name in extractor.acting_fields
            if name in SelectOnly.model_fields and name in type(extractor).model_fields
        }
        return SelectOnly().model_copy(update={**acting, "candidates": candidates})


AnyCurve = Annotated[
    Annotated[ExtractorCurve | BackendCurve, Field(discriminator="kind")],
    BeforeValidator(from_kind),
]
