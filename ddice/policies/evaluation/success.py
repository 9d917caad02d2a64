"""Whether episodes succeeded, from what environments say of it in `info`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

KEYS = (
    *("success", "is_success", "goal_achieved", "goal_reached", "task_success", "solved"),
    *("is_solved", "succeeded", "episode_success", "task_completed", "reached_goal", "goal_met"),
    "arrive_dest",
)
"""Names under which environments report it; the first one that says something counts."""


@dataclass
class Reports:
    """What one episode has reported. `last` is that of the last step, None where it said nothing;
    `latest` the last one of all. odd: a report that is neither true nor false.
    """

    ever: bool | None = None
    last: bool | None = None
    latest: bool | None = None
    denied: bool = False
    odd: str | None = None

    def read(self, info: Mapping[str, Any]) -> None:
        """Takes in what a step says."""
        self.last = None
        for key in KEYS:
            if key not in info:
                continue
            verdict = _verdict(info[key])
            if isinstance(verdict, str):
                self.odd = f"{key} = {verdict}"
            elif verdict is not None:
                self.last = self.latest = verdict
                self.ever = bool(self.ever) or verdict
                self.denied = self.denied or not verdict
                return


def _verdict(value: Any) -> bool | str | None:
    """True, False, None for what says nothing (None, NaN), or what else it is, in words."""
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        return repr(value)
    said = array[~np.isnan(array)] if array.dtype.kind == "f" else array.reshape(-1)
    if not said.size:
        return None
    if not np.isin(said, (0, 1)).all():
        return repr(value)
    return bool(said.any())


class Verdicts(NamedTuple):
    """Of E episodes: whether any step, and whether the last one, reported success; None, with the
    reason as a note, where nobody can know.
    """

    ever: tuple[bool, ...] | None
    final: tuple[bool, ...] | None
    note: str | None


def judge(episodes: Sequence[Reports]) -> Verdicts:
    """What the reports of all episodes say together.

    Some environments report success only where it is true: where no step of any episode reported a
    failure, a step without a report is one. Where failures are reported too, an episode without any
    report is unknown.
    """
    odd = [one.odd for one in episodes if one.odd is not None]
    if odd:
        return Verdicts(None, None, f"reported as {odd[0]}, expected true or false")
    silent = sum(one.ever is None for one in episodes)
    if silent == len(episodes):
        return Verdicts(None, None, f"not reported (no {', '.join(KEYS[:-1])} or {KEYS[-1]})")
    explicit = any(one.denied for one in episodes)
    if explicit and silent:
        note = f"reported in {len(episodes) - silent} of {len(episodes)} episodes only"
        return Verdicts(None, None, note)
    ever = tuple(bool(one.ever) for one in episodes)
    if explicit:
        # Failures are reported too, so that silence in the last step says nothing: the latest word
        # counts.
        return Verdicts(ever, tuple(bool(one.latest) for one in episodes), None)
    # Silence means failure here, so that only a report of the last step itself counts.
    return Verdicts(ever, tuple(bool(one.last) for one in episodes), None)
