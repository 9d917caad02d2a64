"""How far one policy is ahead of another: paired by seed, on the same episodes, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ddice.core import statistics
from ddice.policies.evaluation.pairing import paired
from ddice.runs.comparison.store import Result

# How often the sign of the difference of two methods comes out wrong on one task, in per cent, for
# true differences of 2 to 5, 5 to 10 and 10 to 20 points: drawn from the public results of 16
# methods on 50 OGBench tasks with 12 seeds each (github.com/ColinQiyangLi/qam).
WRONG_SIGN = {3: (19, 11, 10), 5: (10, 6, 5), 8: (5, 2, 1)}

PAIRED = (
    "Differences are paired by seed on the same episodes; in brackets Student's interval over "
    "seeds. The best other is the other policy of the highest mean score."
)


@dataclass(frozen=True)
class Difference:
    """The mean of first - second, in points of score, and its 95 % interval: Student's over the
    seeds that both have, or over the episodes of the only such seed, which leaves the luck of
    training out. `low` and `high` are infinite for a single number.
    """

    mean: float
    low: float
    high: float
    over: Literal["seeds", "episodes"]

    @property
    def is_above(self) -> bool:
        """The interval says that the first is better."""
        return self.low > 0

    def __str__(self) -> str:
        if not np.isfinite(self.low):
            return f"{self.mean:+.1f}"
        text = f"{self.mean:+.1f} [{self.low:.1f}, {self.high:.1f}]"
        return text if self.over == "seeds" else f"{text} of episodes"


def seed_differences(first: Sequence[Result], second: Sequence[Result]) -> dict[int, np.ndarray]:
    """First - second of every episode, (E,), by seed; of the seeds that both have in the same
    units on the same episodes.
    """
    others = {result.seed: result.evaluation for result in second}
    found = {}
    for result in first:
        ours, theirs = result.evaluation, others.get(result.seed)
        if theirs is None or ours.label != theirs.label:
            continue
        try:
            found[result.seed] = np.array(paired(ours, theirs).differences)
        except ValueError:  # other episodes: there are no pairs
            continue
    return found


def difference(first: Sequence[Result], second: Sequence[Result]) -> Difference | None:
    """Of two policies on one task; None where no seed has pairs."""
    return over_tasks([(first, second)])


def over_tasks(pairs: Sequence[tuple[Sequence[Result], Sequence[Result]]]) -> Difference | None:
    """The mean over tasks of the difference of two policies, from the results of both on each
    task; None where a task has no pairs.
    """
    tasks = [list(seed_differences(first, second).values()) for first, second in pairs]
    if not tasks or not all(tasks):
        return None
    seeds = [np.array([episodes.mean() for episodes in task]) for task in tasks]
    centre = float(np.mean([means.mean() for means in seeds]))
    if all(len(means) > 1 for means in seeds):
        return Difference(centre, *statistics.student_interval(seeds), "seeds")
    if all(len(task) == 1 and len(task[0]) > 1 for task in tasks):
        episodes = [task[0] for task in tasks]
        return Difference(centre, *statistics.student_interval(episodes), "episodes")
    return Difference(centre, -np.inf, np.inf, "seeds")


def what_seeds_tell(seeds: int) -> str:
    """A warning about the differences of policies that were trained with this many seeds."""
    if seeds < min(WRONG_SIGN):
        begin = f"{seeds} seed{'s' if seeds > 1 else ''} cannot rank policies: even with"
        known = min(WRONG_SIGN)
    else:
        known = max(number for number in WRONG_SIGN if number <= seeds)
        begin = "What so many seeds can tell: with"
    small, middle, large = WRONG_SIGN[known]
    return (
        f"{begin} {known} seeds the sign of a true difference of 2 to 5 points comes out wrong in "
        f"{small} % of comparisons on one task, of 5 to 10 points in {middle} %, of 10 to 20 "
        f"points in {large} % (16 methods, 50 tasks, public results)."
    )
