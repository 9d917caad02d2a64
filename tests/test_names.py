"""A part has the name of its configuration and its role."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from ddice.core.config import Config
from ddice.diffusion.prior import DiffusionPrior
from ddice.testing.catalogue import BACKENDS, EXTRACTORS, SAMPLERS, Example
from ddice.testing.example import example_data

ROLES: dict[str, Iterable[Example]] = {
    "Backend": BACKENDS,
    "Extractor": EXTRACTORS,
    "Sampler": SAMPLERS,
}
CASES = [(role, example) for role, examples in ROLES.items() for example in examples]


def build(role: str, config: Config) -> object:
    """The part of a configuration, untrained."""
    spec = example_data().spec
    if role != "Extractor":
        return config.build(spec)
    prior = DiffusionPrior().build(spec) if config.needs_prior else None
    return config.build(spec, prior=prior)


@pytest.mark.parametrize(
    ("role", "example"), CASES, ids=[f"{role}-{example.kind}" for role, example in CASES]
)
def test_a_part_has_the_name_of_its_configuration_and_its_role(role: str, example: Example) -> None:
    part = build(role, example.config)
    assert type(part).__name__ == f"{example.part.__name__}{role}"
    assert type(part).__module__ == example.part.__module__
