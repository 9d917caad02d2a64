"""Arrays, transitions, fingerprints and bad input, on datasets small enough to work out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ddice.data import load_dataset
from ddice.data.bounds import CONSTANT_WIDTH
from ddice.data.spec import ReferenceScores

UNIT = {"action_bounds": (-1.0, 1.0)}


def two_episodes(**changes: Any) -> dict[str, Any]:
    """Rows 0-2 terminate, rows 3-6 are cut: row 6 cannot be kept, its next observation is
    unknown.
    """
    data = {
        "observations": np.array([[0.0, 10], [1, 11], [2, 12], [3, 13], [4, 14], [5, 15], [6, 16]]),
        "actions": np.array([[-1.0], [0], [1], [0.5], [-0.5], [0.25], [0]]),
        "rewards": np.array([1.0, 2, 4, 1, 1, 1, 100]),
        "terminations": np.array([0, 0, 1, 0, 0, 0, 0], bool),
        "truncations": np.array([0, 0, 0, 0, 0, 0, 1], bool),
    }
    data.update(changes)
    return {key: value for key, value in data.items() if value is not None}


def load(data: Any, **options: Any) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_dataset(data, **{**UNIT, **options})


def test_two_episodes_row_by_row() -> None:
    with pytest.warns(UserWarning, match="1 of 7 rows dropped"):
        data = load_dataset(two_episodes(), **UNIT)
    assert data.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.observations[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert data.next_observations.tolist() == [
        [1, 11],
        [2, 12],
        [2, 12],
        [4, 14],
        [5, 15],
        [6, 16],
    ]  # terminated: its own
    assert data.actions[:, 0].tolist() == [-1, 0, 1, 0.5, -0.5, 0.25]
    assert data.rewards.tolist() == [1, 2, 4, 1, 1, 1]
    assert data.terminations.tolist() == [
        False,
        False,
        True,
        False,
        False,
        False,
    ]  # a cut is no termination
    assert data.episode.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.initial_observations.tolist() == [[0, 10], [3, 13]]
    assert (
        data.spec.transitions,
        data.spec.episodes,
        data.spec.source_rows,
        data.spec.has_initial,
    ) == (6, 2, 7, True)
    assert data.spec.normalizer.mean == (2.5, 12.5)
    assert data.spec.normalizer.std == pytest.approx((math.sqrt(35 / 12),) * 2)
    rewards = data.spec.rewards
    assert (
        rewards.min_return,
        rewards.max_return,
        rewards.min_nonpositive,
        rewards.positive_share,
    ) == (7, 103, 0, 1)  # the 100 of the dropped row was paid


def test_returns_to_go_stop_at_the_end_of_the_episode() -> None:
    data = load(two_episodes())
    assert data.returns_to_go(data.rewards, 0.5).tolist() == [3, 4, 4, 1.75, 1.5, 1]
    assert data.returns_to_go(data.rewards, 0.0).tolist() == data.rewards.tolist()
    rng, ends = np.random.default_rng(0), np.zeros(300, bool)
    ends[[0, 1, 40, 299]] = True
    long = load(
        {
            "observations": rng.normal(size=(300, 2)),
            "actions": np.zeros((300, 1)),
            "rewards": rng.normal(size=300),
            "terminations": ends,
        }
    )
    expected, total = np.zeros(300), 0.0
    for i in reversed(range(300)):
        total = float(long.rewards[i]) + (0.0 if ends[i] else 0.97 * total)
        expected[i] = total
    np.testing.assert_allclose(
        long.returns_to_go(long.rewards, 0.97), expected, rtol=1e-5, atol=1e-6
    )


def test_episode_ids_and_flags_cut_alike() -> None:
    flags = load(two_episodes())
    named = load(two_episodes(truncations=None, episode_ids=["a"] * 3 + ["b"] * 4))
    unfinished = load(two_episodes(truncations=None))
    assert flags.spec.fingerprint == named.spec.fingerprint == unfinished.spec.fingerprint
    without = load(
        two_episodes(terminations=None, truncations=None, episode_ids=[0, 0, 0, 5, 5, 5, 5])
    )
    assert without.rows.tolist() == [0, 1, 3, 4, 5]
    assert not without.terminations.any()


def test_next_observations_keep_the_cut_row_and_need_no_chain() -> None:
    following = two_episodes()["observations"] + 1
    episodes = load(two_episodes(next_observations=following))
    assert episodes.rows.tolist() == list(range(7))
    assert episodes.next_observations[6].tolist() == [7, 17]
    assert episodes.describe().dropped_rows == 0
    independent = load(two_episodes(next_observations=following, truncations=None))
    assert independent.episode is None
    assert independent.initial_observations is None
    assert not independent.spec.has_initial
    assert independent.spec.rewards.min_return is None
    assert independent.sample(2, seed=0, step=0).initial is None
    given = load(
        two_episodes(
            next_observations=following,
            truncations=None,
            initial_observations=[[0.0, 10]],
            initial_weights=[0.25],
        )
    )
    assert given.full().initial.weights.tolist() == [0.25]
    with pytest.raises(ValueError, match="independent transitions"):
        given.returns_to_go(given.rewards, 0.9)


def test_nested_observations_flatten_in_sorted_order() -> None:
    nested = two_episodes(
        observations={
            "z": np.arange(7.0),
            "a": {"y": np.ones((7, 1)), "x": np.arange(14.0).reshape(7, 2) + 100},
        }
    )
    data = load(nested)
    assert [part.path for part in data.spec.observations.parts] == ["a/x", "a/y", "z"]
    assert data.observations[1].tolist() == [102, 103, 1, 1]
    native = {"a": {"x": np.array([102.0, 103]), "y": np.ones(1)}, "z": np.float64(1)}
    assert data.spec.observations.flatten(native).tolist() == [102, 103, 1, 1]
    assert data.spec.normalizer.std[2] == 1  # constant
    assert data.describe().constant_observations == (2,)


def test_sampling_is_a_pure_function_of_seed_and_step() -> None:
    data = load(two_episodes(weights=[1, 2, 3, 4, 5, 6, 7]))
    batch = data.sample(64, seed=3, step=5)
    data.sample(7, seed=0, step=0)
    again = data.sample(64, seed=3, step=5)
    assert torch.equal(batch.rows, again.rows)
    assert not torch.equal(batch.rows, data.sample(64, seed=3, step=6).rows)
    assert set(batch.rows.tolist()) == {0, 1, 2, 3, 4, 5}
    for name in (
        "observations",
        "actions",
        "rewards",
        "next_observations",
        "terminations",
        "weights",
    ):
        assert torch.equal(getattr(batch, name), getattr(data, name)[batch.rows]), name
    several = data.sample(64, seed=[1, 3], step=5)
    assert several.observations.shape == (2, 64, 2)
    assert torch.equal(several.rows[1], batch.rows)
    assert torch.equal(several.next_observations[1], batch.next_observations)
    assert torch.equal(several.initial.observations[1], batch.initial.observations)
    assert {tuple(row) for row in batch.initial.observations.tolist()} == {(0, 10), (3, 13)}
    weighted = dict(
        zip(batch.initial.observations[:, 0].tolist(), batch.initial.weights.tolist(), strict=True)
    )
    assert weighted == {0: 1, 3: 4}  # the weight of the first row


def test_rows_and_first_observations_are_drawn_independently() -> None:
    one_step = load(
        {
            "observations": np.arange(50.0)[:, None],
            "actions": np.zeros((50, 1)),
            "rewards": np.zeros(50),
            "terminations": np.ones(50),
        }
    )
    batch = one_step.sample(4000, seed=0, step=0)
    rows, first = batch.rows.double(), batch.initial.observations[:, 0].double()
    assert abs(torch.corrcoef(torch.stack([rows, first]))[0, 1]) < 5 / math.sqrt(4000)
    assert abs(rows.mean() - 24.5) < 5 * math.sqrt((50**2 - 1) / 12 / 4000)


def test_batches_and_full_hold_everything_once_and_in_order() -> None:
    data = load(two_episodes())
    assert torch.cat([batch.rows for batch in data.batches(4)]).tolist() == [0, 1, 2, 3, 4, 5]
    full = data.full()
    assert full.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert full.initial.observations.tolist() == [[0, 10], [3, 13]]
    assert full.to("cpu").initial.weights.tolist() == [1, 1]


def many(count: int = 20, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    ids = np.repeat(np.arange(count), 5)
    data = {
        "observations": rng.normal(size=(5 * count, 3)),
        "actions": rng.uniform(-1, 1, (5 * count, 2)),
        "rewards": rng.normal(size=5 * count),
    }
    return {**data, "episode_ids": ids, **changes}


def test_split_and_subset_keep_whole_episodes() -> None:
    data = load(many())
    a, b = data.split(0.25, seed=0)
    assert (a.spec.episodes, b.spec.episodes) == (5, 15)
    assert sorted(a.rows.tolist() + b.rows.tolist()) == data.rows.tolist()
    assert not set((a.rows // 5).tolist()) & set((b.rows // 5).tolist())
    assert a.episode.tolist() == np.repeat(np.arange(5), 4).tolist()
    starts = torch.from_numpy(many()["observations"]).float()[a.rows[::4]]
    assert torch.equal(a.initial_observations, starts)
    assert torch.equal(a.rows, data.split(0.25, seed=0)[0].rows)
    assert not torch.equal(a.rows, data.split(0.25, seed=1)[0].rows)
    assert a.spec.fingerprint != b.spec.fingerprint != data.spec.fingerprint
    whole = data.subset(1.0, seed=9)
    assert whole.spec == data.spec
    assert data.subset(0.001, seed=0).spec.episodes == 1
    with pytest.raises(ValueError, match=r"fraction in \(0, 1\]"):
        data.subset(1.5, seed=0)
    with pytest.raises(ValueError, match="at least 2 episodes"):
        data.subset(0.01, seed=0).split(0.5, seed=0)


def test_a_list_counts_rows_and_episodes_through() -> None:
    one = load(two_episodes())
    both = load([two_episodes(), two_episodes(rewards=np.zeros(7))])
    assert both.rows.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    assert both.episode.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert torch.equal(both.next_observations[6:], one.next_observations)
    assert both.initial_observations.tolist() == [[0, 10], [3, 13]] * 2
    assert both.spec.source_rows == 14
    assert load([two_episodes()]).spec == one.spec
    with pytest.raises(ValueError, match="same observations"):
        load([two_episodes(), two_episodes(observations=np.zeros((7, 3)))])
    with pytest.raises(ValueError, match="whole episodes or independent"):
        load([two_episodes(), two_episodes(truncations=None, next_observations=np.zeros((7, 2)))])


def test_fingerprints_are_stable_and_sensitive() -> None:
    base = load(many()).spec
    same = load({key: torch.as_tensor(value) for key, value in many().items()}).spec
    assert (same.fingerprint, same.behaviour_fingerprint) == (
        base.fingerprint,
        base.behaviour_fingerprint,
    )
    single = load(
        {
            key: value.astype(np.float32) if value.dtype == np.float64 else value
            for key, value in many().items()
        }
    ).spec
    assert single.fingerprint == base.fingerprint
    rewards, flags = many()["rewards"].copy(), np.zeros(100, bool)
    rewards[3] += 1
    flags[9] = True
    for changed in (load(many(rewards=rewards)).spec, load(many(terminations=flags)).spec):
        assert changed.fingerprint != base.fingerprint
    assert (
        load(many(rewards=rewards)).spec.behaviour_fingerprint == base.behaviour_fingerprint
    )  # a prior sees no rewards
    observations = many()["observations"].copy()
    observations[3, 1] += 1e-3
    for changed_data in (
        load(many(observations=observations)),
        load(many(), action_bounds=(-2, 2)),
        load(many(weights=np.arange(1.0, 101))),
    ):
        changed = changed_data.spec
        assert changed.fingerprint != base.fingerprint
        assert changed.behaviour_fingerprint != base.behaviour_fingerprint


def test_the_next_observation_of_a_terminated_row_is_not_part_of_the_fingerprint() -> None:
    following = np.roll(two_episodes()["observations"], -1, axis=0)
    other = following.copy()
    other[2] = 77
    a, b = (load(two_episodes(next_observations=following_)) for following_ in (following, other))
    assert a.spec.fingerprint == b.spec.fingerprint
    other[3] = 77
    assert load(two_episodes(next_observations=other)).spec.fingerprint != a.spec.fingerprint


def test_action_bounds() -> None:
    actions = two_episodes()["actions"] * 3 + 1  # -2 .. 4
    data = load(two_episodes(actions=actions), action_bounds=(-2, [4]))
    assert data.actions[:, 0].tolist() == pytest.approx([-1, 0, 1, 0.5, -0.5, 0.25])
    assert (
        load(two_episodes(actions=actions), action_bounds="data").spec.actions == data.spec.actions
    )
    with pytest.raises(ValueError, match='action_bounds="data"'):
        load(two_episodes(), action_bounds=None)
    with pytest.raises(
        ValueError, match=r"16\.67% of the rows \(1 of 6\) lie outside; worst is row 2: \(4\)"
    ):
        load(two_episodes(actions=actions), action_bounds=(-2, 3))
    clipped = load(two_episodes(actions=actions), action_bounds=(-2, 3), out_of_bounds="clip")
    assert clipped.actions[2].item() == 1
    assert clipped.describe().clipped_rows == 1
    rounded = load(two_episodes(actions=two_episodes()["actions"] * np.float32(1 + 2e-7)))
    assert rounded.actions.abs().max() == 1
    assert rounded.describe().clipped_rows == 0
    for bad in ((1, -1), (-1, math.inf), (0, 0)):
        with pytest.raises(ValueError, match="low < high"):
            load(two_episodes(), action_bounds=bad)


def test_a_constant_action_dimension_gets_a_box_with_an_inside() -> None:
    data = load(
        two_episodes(actions=np.hstack([two_episodes()["actions"], np.full((7, 1), 5.0)])),
        action_bounds="data",
    )
    assert data.spec.actions.low == (-1, 5 - 5 * CONSTANT_WIDTH)
    assert data.actions[:, 1].abs().max() < 1e-4
    torch.testing.assert_close(
        data.spec.actions.from_unit(data.actions)[:, 1], torch.full((6,), 5.0).double()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"observations": np.where(np.arange(14).reshape(7, 2) == 9, np.nan, 1.0)},
            r"finite (next_)?observations, got nan in row [34]; 1 of 6 rows",
        ),
        (
            {"rewards": np.array([0, 0, np.inf, 0, 0, 0, 0])},
            "finite rewards, got inf in row 2; 1 of 6 rows",
        ),
        ({"actions": np.full((7, 1), np.nan)}, "finite actions, got nan in row 0; 6 of 6"),
        ({"observations": np.full((7, 2), 1e300)}, "beyond-float32"),
        ({"rewards": np.zeros(6)}, "same length, got actions 7, observations 7, rewards 6"),
        (
            {"observations": np.zeros((8, 2))},
            "observation after the last step into next_observations",
        ),
        (
            {"next_observations": np.zeros((7, 3))},
            "next_observations with the shapes of observations",
        ),
        ({"actions": np.zeros(7, np.int64)}, "discrete actions are not supported yet"),
        (
            {"actions": np.zeros(7)},
            r"expected actions of shape \(N, A\), got \(6,\): use actions\[:, None\]",
        ),
        ({"observations": np.zeros((7, 8, 8, 3))}, "image observations are not supported yet"),
        ({"observations": np.zeros((7, 4), np.uint8)}, r"vectors of bytes.*uint8 of shape \(4,\)"),
        ({"observations": np.zeros(7, np.int64)}, "discrete observations are not supported yet"),
        (
            {"observations": [np.zeros((3, 2)), np.zeros((4, 2))]},
            "observations to be one array, got a ragged sequence",
        ),
        ({"terminals": np.zeros(7)}, "unknown array 'terminals': did you mean 'terminations'"),
        ({"rewards": None}, "'rewards' is missing"),
        (
            {"terminations": None, "truncations": None},
            "to know where episodes end; give next_observations",
        ),
        ({"terminations": np.full(7, 2)}, "expected terminations of booleans, got 2 in row 0"),
        ({"episode_ids": [0, 0, 1, 1, 0, 0, 0]}, "one block per episode"),
        ({"weights": np.array([1.0, -1, 1, 1, 1, 1, 1])}, r"weights >= 0 .* got -1.0 in row 1"),
        ({"initial_observations": np.zeros((2, 3))}, "initial_observations with the shapes"),
        (
            {"next_observations": np.full((7, 2), 50.0)},
            "leave truncations and episode_ids out to read independent transitions",
        ),
    ],
)
def test_bad_arrays_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        load(two_episodes(**changes))


def test_empty_and_one_step_episodes() -> None:
    none = {
        "observations": np.zeros((0, 2)),
        "actions": np.zeros((0, 1)),
        "rewards": np.zeros(0),
        "terminations": np.zeros(0),
    }
    with pytest.raises(ValueError, match="at least one transition, got none"):
        load(none)
    one = {"observations": np.ones((1, 2)), "actions": np.zeros((1, 1)), "rewards": np.ones(1)}
    terminated = load({**one, "terminations": [True]})
    assert (len(terminated), terminated.initial_observations.tolist()) == (1, [[1, 1]])
    with pytest.raises(ValueError, match="one-step episode without its next observation"):
        load({**one, "episode_ids": [0]})
    short = load(
        two_episodes(truncations=None, episode_ids=[0, 0, 0, 1, 2, 2, 2])
    )  # row 3 is an episode of its own and is lost
    assert short.rows.tolist() == [0, 1, 2, 4, 5]
    assert short.episode.tolist() == [0, 0, 0, 1, 1]
    assert short.initial_observations[:, 0].tolist() == [0, 4]
    assert short.describe().empty_episodes == 1


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (3, {}, TypeError, "Minari id, a MinariDataset, a dict of arrays"),
        ([], {}, ValueError, "at least one source"),
        (two_episodes(), {"out_of_bounds": "ignore"}, ValueError, "out_of_bounds"),
        (two_episodes(), {"action_bounds": "auto"}, ValueError, "action_bounds=None"),
        (two_episodes(), {"goal": "near"}, ValueError, 'goal=None, "fixed" or "observed"'),
        (two_episodes(), {"goal": "fixed"}, ValueError, "needs observations with the keys"),
        (two_episodes(), {"reference_scores": (1, 1)}, ValueError, "two different finite returns"),
    ],
)
def test_bad_options_are_named(
    source: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(source, **options)


def test_reference_scores_of_the_user_win_and_description_reads() -> None:
    data = load(two_episodes(), reference_scores=(0, 7))
    assert data.spec.reference == ReferenceScores(random=0, expert=7, source="user")
    described = data.describe()
    assert (
        described.return_mean,
        described.length_max,
        described.terminations,
        described.truncations,
    ) == ((7 + 103) / 2, 4, 1, 1)
    assert described.action_saturation == pytest.approx((2 / 6,))
    text = str(described)
    assert "1 of 7 rows dropped" in text
    assert data.spec.fingerprint in text
    assert "array (2,) at 0..1" in text
