"""The fifteen D4RL tasks of Diffusion-DICE: what is published of their settings, and the published
scores.

Settings are those of the public implementation, scores those of the paper's table. What neither
gives is None.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ddice.core.config import Config

SOURCE = "arXiv 2407.20109, table 1"

# Of no publication: the Gymnasium versions nearest to the Gym -v2 environments that D4RL recorded,
# with the same reference returns.
_ENVIRONMENTS = {"halfcheetah": "HalfCheetah-v4", "hopper": "Hopper-v4", "walker2d": "Walker2d-v4"}


class Task(Config):
    """One task of D4RL: settings of the public implementation, and scores as published; None is
    what was never published.
    """

    name: str
    guidance_scale: float
    noises_per_action: int
    rewards: Literal["return_range", "minus_one_zero"]
    selection: Literal["mean", "softmax"] = Field(
        description="argmax of the mean of ten members, or a sample from softmax(Q) of the critic"
    )
    episodes: int
    temperature: None = Field(
        None,
        description=(
            "the temperature of each task was never published; 0.5 is the default of the "
            "public command line"
        ),
    )
    candidates: None = Field(
        None,
        description=(
            "K of each task was never published; 1 is the default of the public command line"
        ),
    )
    score: float = Field(description="of Diffusion-DICE")
    best_other: float = Field(description="of the best other method in the same table")

    @property
    def environment(self) -> str | None:
        """The evaluation environment; None where Gymnasium has none with the observations of the
        data.
        """
        return _ENVIRONMENTS.get(self.name.partition("-")[0])

    def changes(self) -> dict[str, Any]:
        """What the task sets in a recipe; what was never published stays as it is there."""
        return {
            "data": {"source": f"{self.name}.hdf5", "env": self.environment},
            "backend": {
                "rewards": [self.rewards],
                "selector": "ensemble" if self.selection == "mean" else "critic",
            },
            "extractor": {
                "guidance_scale": self.guidance_scale,
                "guidance": {"noises_per_action": self.noises_per_action},
                "selection": {"rule": self.selection},
            },
            "evaluation": {"episodes": self.episodes},
        }


def _locomotion(name: str, guidance_scale: float, score: float, best_other: float) -> Task:
    return Task(
        name=name,
        guidance_scale=guidance_scale,
        noises_per_action=16,
        rewards="return_range",
        selection="mean",
        episodes=10,
        score=score,
        best_other=best_other,
    )


def _antmaze(name: str, guidance_scale: float, score: float, best_other: float) -> Task:
    return Task(
        name=name,
        guidance_scale=guidance_scale,
        noises_per_action=32,
        rewards="minus_one_zero",
        selection="softmax",
        episodes=50,
        score=score,
        best_other=best_other,
    )


_ALL = (
    _locomotion("halfcheetah-medium-v2", 4, 60.0, 54.1),
    _locomotion("halfcheetah-medium-replay-v2", 4, 49.2, 47.8),
    _locomotion("halfcheetah-medium-expert-v2", 2, 97.3, 96.8),
    _locomotion("hopper-medium-v2", 4, 100.2, 98.0),
    _locomotion("hopper-medium-replay-v2", 4, 102.3, 101.3),
    _locomotion("hopper-medium-expert-v2", 2, 112.2, 111.8),
    _locomotion("walker2d-medium-v2", 4, 89.3, 87.0),
    _locomotion("walker2d-medium-replay-v2", 4, 90.8, 95.5),
    _locomotion("walker2d-medium-expert-v2", 2, 114.1, 112.7),
    _antmaze("antmaze-umaze-v2", 1, 98.1, 96.4),
    _antmaze("antmaze-umaze-diverse-v2", 1, 82.0, 85.3),
    _antmaze("antmaze-medium-play-v2", 2, 91.3, 86.0),
    _antmaze("antmaze-medium-diverse-v2", 2, 85.7, 84.8),
    _antmaze("antmaze-large-play-v2", 4, 68.6, 66.6),
    _antmaze("antmaze-large-diverse-v2", 4, 72.0, 67.9),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
