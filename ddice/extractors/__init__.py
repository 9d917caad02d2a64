"""Extractors: from distribution ratios to a policy."""

from typing import Annotated

from pydantic import Field

from ddice.core.plugins import EXTRACTORS, PluginKinds
from ddice.extractors.base import Extractor, ExtractorConfig
from ddice.extractors.guide_then_select import GuideThenSelect
from ddice.extractors.select_only import SelectOnly
from ddice.extractors.weighted_bc import GaussianBC, WeightedBC

AnyExtractor = Annotated[
    GuideThenSelect | WeightedBC | GaussianBC | SelectOnly,
    Field(discriminator="kind"),
    PluginKinds(EXTRACTORS, ExtractorConfig),
]

__all__ = [
    "AnyExtractor",
    "Extractor",
    "ExtractorConfig",
    "GaussianBC",
    "GuideThenSelect",
    "SelectOnly",
    "WeightedBC",
]
