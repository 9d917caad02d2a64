"""`load_dataset`: from a source to `Transitions`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from ddice.core.config import LARGEST_NUMBER
from ddice.data.bounds import ActionBounds, choose_bounds, to_unit
from ddice.data.checks import (
    require_content,
    require_continuous,
    require_finite,
    require_vectors,
    require_weights,
)
from ddice.data.columns import ColumnNames
from ddice.data.description import Provenance
from ddice.data.environment import Environment, clean_record, inspect, record_of
from ddice.data.measures import EpisodeTotals
from ddice.data.memory import recorded_memory, words
from ddice.data.reading import read
from ddice.data.scores import bundled_reference
from ddice.data.source import Leaves, Source, concatenate
from ddice.data.spec import (
    BoxActions,
    EnvRecord,
    FixedGoal,
    Normalizer,
    Observations,
    ObservedGoal,
    ReferenceScores,
    RewardSummary,
    Spec,
)
from ddice.data.tasks import task_of
from ddice.data.transitions import Transitions, build
from ddice.data.view import Goal, choose_view, has_goals, observations_of, relabel

PAIR = "expected reference_scores=(random, expert), two different finite returns"


def load_dataset(
    source: Any,
    *,
    goal: Goal = None,
    action_bounds: ActionBounds | None = None,
    out_of_bounds: Literal["error", "clip"] = "error",
    reference_scores: tuple[float, float] | None = None,
    env: Any = None,
    episode_steps: int | None = None,
    columns: ColumnNames | None = None,
    download: bool = True,
    cache: bool = True,
    trust_env: Sequence[str] = (),
) -> Transitions:
    """Read a dataset as flat transitions.

    source: a Minari id (local, else downloaded), a `MinariDataset`, a dict of arrays (keys:
        `ddice.data.arrays.KEYS`), a frame of pandas or polars, a file (.npz: such a dict, or the
        columns of OGBench or D4RL; .hdf5, .h5: those of D4RL or robomimic; .csv), a folder
        of LeRobot, or a list of these, whose rows are counted through in order.
    goal: the view of goal-conditioned mazes. "fixed": the goal of the evaluation environment;
    `desired_goal` is hidden and reward is 1 when the next
        position lies within the success radius, else 0. "observed": everything recorded. None:
        "fixed" where the evaluation environment has one goal.
    action_bounds: None (those of the action space), "data" (smallest and largest action), or (low,
    high); out_of_bounds: "error" or "clip". reference_scores: (random, expert) returns that score 0
    and 1; default those of Minari, else a bundled table, else none. env: id, `gymnasium.Env` or
    `EnvSpec` of the evaluation environment; always wins over the recorded one. episode_steps: where
    nothing says where episodes are cut (D4RL files without timeouts), cut them after that many
    rows. columns: names in arrays, frames and files that are not ours, {ours: theirs}; several of
    theirs are put side by side: {"observations": ["x", "y"], "rewards": "reward"}. download:
    whether a Minari id that is not here is downloaded; cache: whether what is read from Minari and
    from files is kept for the next time,
        in `DDICE_CACHE` (else ~/.cache/ddice). The outcome is the same; a changed source or a
        damaged entry is read again.
    trust_env: modules that a recorded environment may be made by, beside what Gymnasium's registry
    holds: data with goals ask it where the goals are.
    Raises ValueError or TypeError for bad data, FileNotFoundError for a dataset that is not to be
    had, ImportError for a missing package.
    """
    if out_of_bounds not in ("error", "clip"):
        raise ValueError(f'expected out_of_bounds="error" or "clip", got {out_of_bounds!r}')
    items = list(source) if isinstance(source, (list, tuple)) else [source]
    if not items:
        raise ValueError("expected at least one source, got an empty list")
    names = [f"arrays {i}" if len(items) > 1 else "arrays" for i in range(len(items))]
    sources = [
        read(
            item,
            name,
            download=download,
            episode_steps=episode_steps,
            cache=cache,
            columns=columns,
            trust_env=trust_env,
        )
        for item, name in zip(items, names, strict=True)
    ]
    given = None if env is None else record_of(env)
    data = concatenate(_same_env(sources, given))
    _check_and_convert(data)
    recorded = None if data.env_spec is None else clean_record(data.env_spec)
    record = given or recorded
    if record is not None and (remembered := recorded_memory(record)):
        data.notes.append(words(remembered))
    needs_goal = goal == "fixed" or (goal is None and has_goals(data))
    facts = None
    if record is not None and (given is not None or needs_goal):
        facts = _inspect(env, record, trust_env)
    view = choose_view(data, goal, facts)
    if given is not None and facts is not None:
        _check_fit(data, facts)
    relabel(data, view)
    observations = observations_of(data, view)
    box = choose_bounds(data, action_bounds)
    for note in data.notes:
        warnings.warn(f"{data.name}: {note}", UserWarning, stacklevel=2)
    return _assemble(
        data,
        observations,
        view,
        box,
        out_of_bounds,
        record,
        _reference(data, recorded, record, reference_scores),
    )


def _inspect(env: Any, record: EnvRecord, trust_env: Sequence[str]) -> Environment:
    try:
        return inspect(env, record=record, trust_env=trust_env)
    except (ImportError, ValueError) as error:
        # Going on without the environment would let the view depend on what happens to be
        # installed, or trusted.
        kind = ImportError if isinstance(error, ImportError) else ValueError
        raise kind(
            f'{error}; with goal="observed" a recorded environment is not needed to load the data'
        ) from error


def _same_env(sources: Sequence[Source], given: EnvRecord | None) -> Sequence[Source]:
    recorded = {clean_record(s.env_spec).spec: s.name for s in sources if s.env_spec is not None}
    if given is None and len(recorded) > 1:
        raise ValueError(
            "expected sources with one evaluation environment, got different ones in "
            f"{', '.join(recorded.values())}: give env="
        )
    return sources


def _check_and_convert(data: Source) -> None:
    """Refuse what cannot be learned from, and bring observations, actions and rewards to
    float32, finite.
    """
    require_vectors(data.leaves)
    require_continuous(data.actions)
    require_content(data)
    same = data.next_leaves is data.leaves
    data.leaves = _float_leaves(data.leaves)
    data.next_leaves = data.leaves if same else _float_leaves(data.next_leaves)
    require_finite(_float(data.actions), "actions", data.rows)  # kept as they are: see `to_unit`
    data.rewards = _float(data.rewards)
    require_finite(data.rewards, "rewards", data.rows)
    if data.weights is not None:
        data.weights = _float(data.weights)
        require_weights(data.weights, "weights")
    if data.initial_leaves is not None:
        data.initial_leaves = _float_leaves(data.initial_leaves)
        for path, leaf in data.initial_leaves.items():
            require_finite(leaf, _leaf_name("initial_observations", path))
    if data.initial_weights is not None:
        data.initial_weights = _float(data.initial_weights)
        require_weights(data.initial_weights, "initial_weights")


def _float(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def _float_leaves(leaves: Leaves) -> Leaves:
    return {path: _float(leaf) for path, leaf in leaves.items()}


def _leaf_name(name: str, path: str) -> str:
    return f"{name}[{path!r}]" if path else name


def _check_fit(data: Source, env: Environment) -> None:
    have = {path: leaf.shape[1:] for path, leaf in data.leaves.items()}
    if env.shapes != have:
        raise ValueError(
            f"expected an env with the observations of the dataset, {have}, got {env.shapes} "
            f"in {env.record.id!r}: they do not fit"
        )
    if env.action_shape != data.actions.shape[1:]:
        expected = data.actions.shape[1:]
        raise ValueError(
            f"expected an env with the actions of the dataset, {expected}, got "
            f"{env.action_shape} in {env.record.id!r}: they do not fit"
        )
    data.bounds = data.bounds if env.bounds is None else env.bounds


def _reference(
    data: Source,
    recorded: EnvRecord | None,
    played: EnvRecord | None,
    given: tuple[float, float] | None,
) -> ReferenceScores | None:
    """The user's, else those of the dataset, else bundled ones; those of the dataset belong to the
    environment that it records, and to no other task.
    """
    if given is not None:
        try:
            random, expert = map(float, given)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{PAIR}, got {given!r}") from error
        if not max(abs(random), abs(expert)) <= LARGEST_NUMBER or random == expert:
            raise ValueError(f"{PAIR}, got {given!r}")
        return ReferenceScores(random=random, expert=expert, source="user")
    if played is None:
        return _recorded_reference(data)
    if recorded is not None and task_of(recorded) != task_of(played):
        return bundled_reference(played)
    return _recorded_reference(data) or bundled_reference(played, data.dataset_id)


def _recorded_reference(data: Source) -> ReferenceScores | None:
    if data.reference is None:
        return None
    random, expert = data.reference
    return ReferenceScores(random=random, expert=expert, source=data.reference_source)


def _recorded_totals(data: Source) -> EpisodeTotals | None:
    """Of all recorded steps, None where each of them is a transition."""
    if data.recorded_rewards is None or data.recorded_episode is None:
        return None
    rewards = _float(data.recorded_rewards)
    require_finite(rewards, "rewards")
    numbers = torch.from_numpy(data.recorded_episode.astype(np.int64))
    return EpisodeTotals.of(torch.from_numpy(rewards), numbers, data.kept_episodes)


def _assemble(
    data: Source,
    observations: Observations,
    view: FixedGoal | ObservedGoal,
    box: BoxActions,
    out_of_bounds: Literal["error", "clip"],
    record: EnvRecord | None,
    reference: ReferenceScores | None,
) -> Transitions:
    """Fill the packed table leaf by leaf, so that no second flat copy of the observations ever
    exists.
    """
    actions, clipped = to_unit(data, box, out_of_bounds)
    size, count = observations.size, len(data)
    table = np.empty((count, 2 * size + box.size + 3), np.float32)
    column = 0
    for part in observations.parts:
        width = int(np.prod(part.shape))
        for offset, leaves, index, name in (
            (0, data.leaves, data.here, "observations"),
            (size, data.next_leaves, data.there, "next_observations"),
        ):
            leaf = leaves[part.path]
            target = table[:, offset + column : offset + column + width]
            target[:] = leaf.reshape(len(leaf), width)[index]
            require_finite(target, _leaf_name(name, part.path), data.rows)
        column += width
    table[:, 2 * size : -3] = actions
    table[:, -3], table[:, -2], table[:, -1] = (
        data.rewards,
        data.terminations,
        1 if data.weights is None else data.weights,
    )
    initial = data.initial_leaves
    first = None
    if initial is not None:
        flat = [
            initial[part.path].reshape(len(initial[part.path]), -1) for part in observations.parts
        ]
        first = torch.from_numpy(np.concatenate(flat, axis=1))
    initial_weights = None
    if first is not None:
        initial_weights = (
            torch.ones(len(first), dtype=torch.float32, device="cpu")
            if data.initial_weights is None
            else torch.from_numpy(data.initial_weights)
        )
    unmeasured = Spec(
        observations=observations,
        actions=box,
        normalizer=Normalizer(mean=(), std=()),
        view=view,
        env=record,
        reference=reference,
        rewards=RewardSummary(mean=0.0, std=0.0, positive_share=0.0),
        transitions=0,
        episodes=0,
        source_rows=data.source_rows,
        has_initial=False,
        fingerprint="",
        behaviour_fingerprint="",
    )
    return build(
        torch.from_numpy(table),
        torch.from_numpy(data.rows.astype(np.int64)),
        spec=unmeasured,
        episode=None if data.episode is None else torch.from_numpy(data.episode.astype(np.int64)),
        initial_observations=first,
        initial_weights=initial_weights,
        initial_by_episode=data.initial_by_episode,
        totals=_recorded_totals(data),
        provenance=Provenance(
            name=data.name,
            dropped_rows=data.dropped_rows,
            empty_episodes=data.empty_episodes,
            clipped_rows=clipped,
            notes=tuple(data.notes),
            unpaid_episodes=data.unpaid_episodes,
        ),
    )
