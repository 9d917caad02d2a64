"""Which task an environment is: what decides its rewards and the length of its episodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ddice.data.spec import EnvRecord

DRAWING = frozenset(
    (
        *("render_mode", "width", "height", "render_fps"),
        *("camera_id", "camera_name", "default_camera_config"),
    )
)
"""Arguments of an environment that change its pictures only."""

NEUTRAL = frozenset(
    (
        *("PassiveEnvChecker", "OrderEnforcing", "RecordEpisodeStatistics", "RecordVideo"),
        *("HumanRendering", "AddRenderObservation", "RenderCollection", "Autoreset"),
        *("ClipAction", "RescaleAction", "TransformAction", "TimeLimit"),
        *("FlattenObservation", "FilterObservation", "FrameStackObservation", "DtypeObservation"),
        *("RescaleObservation", "ReshapeObservation", "TransformObservation"),
        *("NormalizeObservation", "TimeAwareObservation"),
    )
)
"""Wrappers of Gymnasium that change neither rewards nor what the episode is worth; the limit of
TimeLimit is read.
"""


class Task(NamedTuple):
    """What two environments with the same rewards share."""

    id: str
    kwargs: Mapping[str, Any]
    wrappers: tuple[str, ...]
    horizon: int | None


def task_of(record: EnvRecord) -> Task:
    """The task of a recorded environment."""
    fields = json.loads(record.spec)
    kwargs = fields.get("kwargs") or {}
    return Task(
        fields["id"],
        {key: value for key, value in kwargs.items() if key not in DRAWING},
        tuple(_wrapper(one) for one in wrappers_of(record) if one["name"] not in NEUTRAL),
        record.time_limit,
    )


def wrappers_of(record: EnvRecord) -> list[dict[str, Any]]:
    """The wrappers of a record, from the inside to the outside: name, entry_point and kwargs."""
    return [dict(one) for one in json.loads(record.spec).get("additional_wrappers") or ()]


def _wrapper(fields: Mapping[str, Any]) -> str:
    given = ", ".join(f"{key}={value!r}" for key, value in (fields.get("kwargs") or {}).items())
    return f"{fields['name']}({given})"


def differences(task: Task, kwargs: Mapping[str, Any], horizon: int | None) -> list[str]:
    """What makes a task another one than that of its id with these arguments and this horizon,
    in words; arguments that are not given have the values of `kwargs`.
    """
    found = [
        f"{key}={value!r}"
        for key, value in task.kwargs.items()
        if key not in kwargs or kwargs[key] != value
    ]
    found += task.wrappers
    if task.horizon != horizon:
        limit = "no time limit" if task.horizon is None else f"a horizon of {task.horizon}"
        found.append(f"{limit}, not {horizon}")
    return found
