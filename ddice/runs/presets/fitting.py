"""Which preset fits a dataset: a table of rules, read from top to bottom, on what the data are
like and never on what they are called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ddice.data.description import Description

ROWS = 1_000  # per action dimension, below which data are small
LONG = 200  # steps of an episode without an end, from which on it is long


@dataclass(frozen=True)
class Rule:
    """The preset of data for which `holds`, and why."""

    preset: str
    holds: Callable[[Description], bool]
    reasons: Callable[[Description], tuple[str, ...]]


def _rows(description: Description) -> float:
    return description.steps / len(description.action_low)


def _small(description: Description) -> tuple[str, ...]:
    size = len(description.action_low)
    dimensions = "one action dimension" if size == 1 else f"{size} action dimensions"
    return (f"{description.steps:,} rows for {dimensions}: fewer than {ROWS:,} for each",)


def _sparse(description: Description) -> bool:
    return description.horizon is not None and description.horizon.sparse


def _path(description: Description) -> tuple[str, ...]:
    horizon = description.horizon
    assert horizon is not None
    return (
        f"rewards are sparse: {horizon.usual_share:.1%} of the rows have the same one",
        f"a path to another takes {horizon.path:.0f} steps",
    )


def _dense(description: Description) -> bool:
    horizon = description.horizon
    return horizon is not None and (horizon.ends or horizon.length >= LONG)


def _survival(description: Description) -> tuple[str, ...]:
    horizon = description.horizon
    assert horizon is not None
    ends = (
        f"{horizon.terminated:.0%} of the episodes terminate, so survival decides about returns"
        if horizon.ends
        else f"episodes are long: {horizon.length:.0f} steps"
    )
    return ("rewards come all the time", ends)


def _nothing(description: Description) -> tuple[str, ...]:
    if description.horizon is None:
        return ("independent transitions say nothing about episodes",)
    return (
        f"rewards come all the time, and episodes are short ({description.horizon.length:.0f} "
        "steps) and do not terminate",
    )


RULES = (
    Rule("dexterous", lambda description: _rows(description) < ROWS, _small),
    Rule("maze", _sparse, _path),
    Rule("locomotion", _dense, _survival),
    Rule("default", lambda description: True, _nothing),
)


def fitting_preset(description: Description) -> tuple[str, tuple[str, ...]]:
    """The name of the preset that fits, and the reasons: the first rule that holds."""
    rule = next(rule for rule in RULES if rule.holds(description))
    return rule.preset, rule.reasons(description)
