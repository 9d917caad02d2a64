"""Extractors: from distribution ratios to a policy."""

from typing import Annotated

from ddice.core.plugins import Door
from ddice.extractors.base import Extractor, ExtractorConfig, SelectingConfig
from ddice.extractors.guide_then_select import GuideThenSelect
from ddice.extractors.policy_gradient import PolicyGradient
from ddice.extractors.select_only import SelectOnly
from ddice.extractors.weighted_bc import GaussianBC, WeightedBC

AnyExtractor = Annotated[
    GuideThenSelect | WeightedBC | GaussianBC | PolicyGradient | SelectOnly | ExtractorConfig,
    Door("ddice.extractors"),
]

__all__ = [
    "AnyExtractor",
    "Extractor",
    "ExtractorConfig",
    "GaussianBC",
    "GuideThenSelect",
    "PolicyGradient",
    "SelectOnly",
    "SelectingConfig",
    "WeightedBC",
]
