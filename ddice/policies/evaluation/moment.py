"""What `on_step` is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Moment:
    """One step of one episode as `evaluate` plays it: observations as the environment gives them,
    the action as it takes it. All of it may be kept: nothing is written into again.

    success: what the episode has reported so far; None where the environment reports nothing. over:
    whether it was the last step of the episode. info: what the environment said besides.
    """

    episode: int
    step: int
    observation: Any
    action: np.ndarray
    reward: float
    next_observation: Any
    success: bool | None
    over: bool
    info: Mapping[str, Any] = field(default_factory=dict)
