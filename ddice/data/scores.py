"""Reference returns that turn a return into a score, with their provenance. Looked up by exact
id only: a near name is another task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ddice.data.spec import EnvRecord, ReferenceScores
from ddice.data.tasks import differences, task_of

_D4RL = "bundled table: D4RL's published reference returns (d4rl/infos.py)"

POINTMAZE_REFERENCES: dict[str, ReferenceScores] = {
    size: ReferenceScores(
        random=random,
        expert=expert,
        source=(
            "bundled table: mean return of 50 episodes in the evaluation environment (fixed "
            "goal cell, random start), uniformly random actions and the waypoint controller "
            "without noise"
        ),
    )
    for size, random, expert in (
        ("umaze", 10.1, 210.4),
        ("medium", 7.5, 366.4),
        ("large", 2.0, 472.8),
    )
}


def _locomotion() -> dict[str, ReferenceScores]:
    # D4RL recorded these in Gym's -v2 environments. Ant-v5 is left out: it pays contact costs that
    # the others do not.
    table = (
        ("HalfCheetah", -280.178953, 12135.0, ("-v2", "-v3", "-v4", "-v5")),
        ("Hopper", -20.272305, 3234.3, ("-v2", "-v3", "-v4", "-v5")),
        ("Walker2d", 1.629008, 4592.3, ("-v2", "-v3", "-v4", "-v5")),
        ("Ant", -325.6, 3879.7, ("-v2", "-v3", "-v4")),
    )
    kinds = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
    scores = {}
    for name, random, expert, versions in table:
        reference = ReferenceScores(random=random, expert=expert, source=f"{_D4RL}, {name}")
        scores.update({name + version: reference for version in versions})
        scores.update(
            {
                f"{name.lower()}-{kind}-{version}": reference
                for kind in kinds
                for version in ("v0", "v1", "v2")
            }
        )
    return scores


def _adroit() -> dict[str, ReferenceScores]:
    table = (
        ("Pen", 96.262799, 3076.8331017826877),
        ("Hammer", -274.856578, 12794.134825156867),
        ("Door", -56.512833, 2880.5693087298737),
        ("Relocate", -6.425911, 4233.877797728884),
    )
    scores = {}
    for name, random, expert in table:
        published = ReferenceScores(random=random, expert=expert, source=f"{_D4RL}, {name}")
        today = ReferenceScores(
            random=random,
            expert=expert,
            source=(
                f"{_D4RL}, {name}; gymnasium-robotics 1.2.1 changed Adroit's dense rewards "
                "under the same id, so scores of newer versions differ"
            ),
        )
        scores[f"AdroitHand{name}-v1"] = today
        scores.update(
            {
                f"{name.lower()}-{kind}-{version}": published
                for kind in ("human", "cloned", "expert")
                for version in ("v0", "v1")
            }
        )
        scores.update(
            {
                f"D4RL/{name.lower()}/{kind}-{version}": today
                for kind in ("human", "cloned", "expert")
                for version in ("v1", "v2")
            }
        )
    return scores


def _goal_tasks() -> dict[str, ReferenceScores]:
    mazes = {
        "maze2d-open-v0": (0.01, 20.66),
        "maze2d-umaze-v1": (23.85, 161.86),
        "maze2d-medium-v1": (13.13, 277.39),
        "maze2d-large-v1": (6.7, 273.99),
        "maze2d-open-dense-v0": (11.17817, 27.166538620695782),
        "maze2d-umaze-dense-v1": (68.537689, 193.66285642381482),
        "maze2d-medium-dense-v1": (44.264742, 297.4552547777125),
        "maze2d-large-dense-v1": (30.569041, 303.4857382709002),
    }
    scores = {
        name: ReferenceScores(random=random, expert=expert, source=f"{_D4RL}, {name}")
        for name, (random, expert) in mazes.items()
    }
    # An AntMaze episode of D4RL ends at the goal with a return of 1. Minari's AntMaze goes on
    # collecting, so its ids are not listed.
    ant = ReferenceScores(
        random=0.0, expert=1.0, source=f"{_D4RL}, antmaze: 1 for reaching the goal"
    )
    kinds = (
        "umaze",
        "umaze-diverse",
        "medium-play",
        "medium-diverse",
        "large-play",
        "large-diverse",
    )
    scores.update({f"antmaze-{kind}-{version}": ant for kind in kinds for version in ("v0", "v2")})
    # Which sub-tasks count is an argument of FrankaKitchen-v1, not part of its id: only the
    # datasets, with their four, are listed.
    kitchen = ReferenceScores(random=0.0, expert=4.0, source=f"{_D4RL}, kitchen: four sub-tasks")
    for kind in ("complete", "partial", "mixed"):
        scores[f"kitchen-{kind}-v0"] = kitchen
        scores.update({f"D4RL/kitchen/{kind}-{version}": kitchen for version in ("v1", "v2")})
    # Likewise PointMaze: the goal cell is an argument, so PointMaze_UMaze-v3 alone says too little.
    for size, reference in POINTMAZE_REFERENCES.items():
        scores[f"ddice/pointmaze-{size}-v0"] = reference
        scores.update({f"D4RL/pointmaze/{size}-{version}": reference for version in ("v1", "v2")})
    return scores


BUNDLED: dict[str, ReferenceScores] = {**_locomotion(), **_adroit(), **_goal_tasks()}


class Conditions(NamedTuple):
    """Arguments and horizon of the environments in which D4RL's table was made."""

    kwargs: Mapping[str, Any]
    horizon: int


_RUNNING = Conditions({}, 1000)
_DENSE = {"reward_type": "dense"}
CONDITIONS: dict[str, Conditions] = {
    **{
        f"{robot}-{version}": _RUNNING
        for robot in ("HalfCheetah", "Hopper", "Walker2d", "Ant")
        for version in ("v2", "v3", "v4", "v5")
    },
    **{f"AdroitHand{name}-v1": Conditions(_DENSE, 200) for name in ("Hammer", "Door", "Relocate")},
    "AdroitHandPen-v1": Conditions(_DENSE, 100),
}
"""For every environment in `BUNDLED`."""


def bundled_reference(
    env: EnvRecord | None, dataset_id: str | None = None
) -> ReferenceScores | None:
    """The bundled references of a dataset (by its Minari or D4RL id), else of an environment (by
    its id with version), else None.

    Those of an environment are returns of its own rewards over its own horizon: with other
    arguments, wrappers that change rewards, or another time limit they are not known.
    """
    if dataset_id is not None and dataset_id in BUNDLED:
        return BUNDLED[dataset_id]
    if env is None or env.id not in BUNDLED or _differs(env):
        return None
    return BUNDLED[env.id]


def why_not_bundled(env: EnvRecord) -> str:
    """What makes an environment of the table another task, to be put after its id; else ""."""
    found = _differs(env)
    return f" with {', '.join(found)}" if found else ""


def _differs(env: EnvRecord) -> list[str]:
    if env.id not in CONDITIONS:
        return []
    made = CONDITIONS[env.id]
    return differences(task_of(env), made.kwargs, made.horizon)
