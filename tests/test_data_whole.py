"""Data are read whole: what dropped rows were paid, what float32 cannot hold, ends where nobody
looks, and columns that are no numbers. Every answer is worked out with numpy or by hand.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddice import load_dataset
from ddice.data.minari_writer import write_dataset
from ddice.data.quality import check
from ddice.data.spec import BoxActions
from ddice.pictures.dataset import histograms

h5py = pytest.importorskip("h5py")

UNIT = {"action_bounds": (-1.0, 1.0)}
# Two episodes cut after three steps and paid at the end, one of three, one of a single step.
REWARD = np.array([0, 0, 1.0, 0, 0, 5.0, 0, 0, -2.0, 7.0])
NEXT = np.arange(1.0, 11)[:, None]
CUT = np.array([0, 0, 1, 0, 0, 1, 0, 0, 1, 1], bool)


def rows(count: int = 10, **changes: Any) -> dict[str, Any]:
    steps = np.arange(float(count))
    found = {
        "observations": steps[:, None],
        "actions": np.sin(steps)[:, None],
        "rewards": np.resize(REWARD, count),
        "terminations": np.zeros(count, bool),
        "truncations": np.resize(CUT, count),
    }
    return found | changes


def load(source: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_dataset(source, **{**UNIT, **options})


def findings(data: Any) -> list[str]:
    return [finding.name for finding in check(data)]


# -- returns of all that was recorded


def test_returns_and_lengths_count_dropped_rows() -> None:
    data = load(rows())
    assert data.rows.tolist() == [0, 1, 3, 4, 6, 7]
    found = data.describe()
    assert (found.episodes, found.dropped_rows, found.truncations) == (4, 4, 4)
    assert (found.return_min, found.return_mean, found.return_max) == (-2, 11 / 4, 7)
    assert (found.length_min, found.length_mean, found.length_max) == (1, 2.5, 3)
    summary = data.spec.rewards
    assert (summary.min_return, summary.max_return) == (-2, 7)
    assert (summary.min_nonpositive, summary.max_nonpositive) == (0, 3)
    drawn = histograms(data)
    assert drawn.returns is not None
    assert drawn.lengths is not None
    assert drawn.returns.tolist() == [1, 5, -2, 7]
    assert drawn.lengths.tolist() == [3, 3, 3, 1]
    whole = load(rows(next_observations=np.arange(10.0)[:, None] + 1))
    assert whole.spec.rewards.max_return == summary.max_return


def test_a_reward_that_only_a_dropped_row_holds_is_said() -> None:
    with pytest.warns(UserWarning, match="hold the only reward of 4 of 4 episodes"):
        data = load_dataset(rows(), **UNIT)
    assert "dropped-rewards" in findings(data)
    paid = rows(rewards=np.where(np.arange(10) % 3 == 0, 1.0, REWARD))  # rows 0, 3, 6 and 9
    with pytest.warns(UserWarning, match="hold the only reward of 1 of 4 episodes"):
        assert load_dataset(paid, **UNIT).describe().unpaid_episodes == 1


def test_other_dropped_rewards_are_other_data() -> None:
    """Reward transforms read the range of the returns, so cached parts must not be found."""
    one, other = load(rows()), load(rows(rewards=np.where(CUT, 3.0, REWARD)))
    assert torch.equal(one.rewards, other.rewards)
    assert one.spec.fingerprint != other.spec.fingerprint
    assert one.spec.behaviour_fingerprint == other.spec.behaviour_fingerprint


def test_parts_and_lists_keep_the_totals_of_their_episodes() -> None:
    both = load([rows(), rows(rewards=REWARD + 1, next_observations=np.arange(10.0)[:, None] + 1)])
    returns = [1, 5, -2, 7, 4, 8, 1, 8]
    assert both.totals.returns.tolist() == returns
    assert both.totals.kept.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert both.totals.lengths.tolist() == [3, 3, 3, 1] * 2
    one, other = both.split(0.5, seed=0)
    kept = sorted(one.totals.returns.tolist() + other.totals.returns.tolist())
    assert kept == sorted([1, 5, -2, 4, 8, 1, 8])
    assert one.spec.episodes == len(one.totals.returns)
    assert both.subset(1.0, seed=3).spec == both.spec


def test_totals_survive_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    np.savez(tmp_path / "a.npz", **rows())
    first, second = (load(str(tmp_path / "a.npz")) for _ in range(2))
    assert first.spec == second.spec == load(rows()).spec
    assert second.describe().return_max == 7
    assert second.describe().unpaid_episodes == 4


# -- what float32 cannot hold


@pytest.mark.parametrize("bounds", [(101325.0, 101325.5), (-3001.0, -3000.0), (0.5, 0.6)])
def test_actions_with_an_offset_are_mapped_in_float64(
    bounds: tuple[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    low, high = bounds
    raw = np.random.default_rng(0).uniform(low, high, (10, 1))
    exact = 2 * (raw - low) / (high - low) - 1
    arrays = rows(actions=raw, next_observations=NEXT)
    data = load(arrays, action_bounds=bounds)
    np.testing.assert_allclose(data.actions.numpy(), exact, atol=1e-7)
    back = data.spec.actions.from_unit(data.actions.numpy())
    assert back.dtype == np.float64
    np.testing.assert_allclose(back, raw, atol=1e-7 * (high - low))
    np.savez(tmp_path / "a.npz", **arrays)
    for _ in range(2):  # read, and found in the cache
        again = load(str(tmp_path / "a.npz"), action_bounds=bounds)
        assert torch.equal(again.actions, data.actions)
    extremes = load(arrays, action_bounds="data").spec.actions
    assert (extremes.low, extremes.high) == ((raw.min(),), (raw.max(),))


def test_actions_around_zero_have_the_bits_that_they_had() -> None:
    raw = np.random.default_rng(0).uniform(-2, 3, (10, 1))
    data = load(rows(actions=raw, next_observations=NEXT), action_bounds=(-2, 3))
    low, high, single = np.float32(-2), np.float32(3), raw.astype(np.float32)
    assert np.array_equal(data.actions.numpy(), 2 * (single - low) / (high - low) - 1)
    assert BoxActions(low=(-2.0,), high=(3.0,)).from_unit(single).dtype == np.float32


@pytest.mark.parametrize("bounds", [(1e8, 1e8 + 1), (0.0, 1e-60), (-1e308, 1e308), (0.0, 1e39)])
def test_bounds_that_float32_cannot_tell_apart_are_refused(bounds: tuple[float, float]) -> None:
    actions = np.zeros((10, 1))
    with pytest.raises(ValueError, match="bounds that float32 can tell apart, got low"):
        load(rows(actions=actions), action_bounds=bounds)


def test_bounds_as_wide_as_float32_reaches_give_no_nan() -> None:
    data = load(rows(actions=np.linspace(-3e38, 3e38, 10)[:, None]), action_bounds=(-3e38, 3e38))
    assert torch.isfinite(data.actions).all()
    assert data.actions[0].item() == -1


def test_columns_that_drown_in_float32_are_found() -> None:
    random, count = np.random.default_rng(0), 200
    time = 1.7e9 + 5.0 * np.arange(count)
    north = 5.5e6 + random.normal(size=count)
    fine = 5.5e6 + 1000 * random.normal(size=count)
    columns = np.stack([time, north, fine, random.normal(size=count), np.full(count, 5.0)], 1)
    data = load(rows(count, observations=columns, rewards=random.normal(size=count)))
    messages = [one.message for one in check(data) if one.name == "drowned-observations"]
    assert len(messages) == 1
    assert messages[0].startswith("observation dimensions 0, 1 vary by less than")


# -- ends, and what was left out


def minari_set(folder: Path, **changes: Any) -> str:
    steps = 4
    episode = {
        "observations": np.arange(5.0, dtype=np.float32)[:, None],
        "actions": np.linspace(-1, 1, steps, dtype=np.float32)[:, None],
        "rewards": np.arange(4.0),
        "terminations": np.zeros(steps, bool),
        "truncations": np.arange(steps) == steps - 1,
    }
    write_dataset(
        "test/whole-v0",
        [episode | changes, episode],
        env_spec_json=None,
        eval_env_spec_json=None,
        reference_scores=None,
        description="made by hand",
        algorithm="none",
    )
    return "test/whole-v0"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    ("column", "word"), [("truncations", "truncated"), ("terminations", "terminated")]
)
def test_ends_within_an_episode_of_minari_are_named(folder: Path, column: str, word: str) -> None:
    name = minari_set(folder, **{column: np.array([False, True, False, True])})
    with pytest.warns(UserWarning, match=f"1 {word} rows are not the last of their episode"):
        assert len(load_dataset(name, **UNIT)) == 8


def test_episodes_that_a_stopped_writer_left_uncounted_are_named(folder: Path) -> None:
    name = minari_set(folder)
    metadata = folder / "minari" / "test" / "whole-v0" / "data" / "metadata.json"
    fields = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({**fields, "total_episodes": 1, "total_steps": 4}))
    with pytest.warns(UserWarning, match="1 of 2 episodes in main_data.hdf5 are not counted"):
        assert len(load_dataset(name, **UNIT)) == 4


def test_rewards_of_minari_may_be_a_column(folder: Path) -> None:
    data = load(minari_set(folder, rewards=np.arange(4.0)[:, None]))
    assert data.rewards.tolist() == [0, 1, 2, 3] * 2


def test_rewards_of_minari_that_are_vectors_are_refused(folder: Path) -> None:
    name = minari_set(folder, rewards=np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"rewards in episode 0 .*one number a step.*\(4, 2\)"):
        load(name)


def test_actions_of_minari_in_float64_keep_their_digits(folder: Path) -> None:
    raw = np.array([[101325.0], [101325.125], [101325.3], [101325.5]])
    name = minari_set(folder, actions=raw)
    with pytest.raises(ValueError, match="lie outside"):  # the second episode is in [-1, 1]
        load(name, action_bounds=(101325.0, 101325.5))
    data = load(name, action_bounds=(101325.0, 101325.5), out_of_bounds="clip")
    np.testing.assert_allclose(data.actions[:4, 0].numpy(), [-1, -0.5, 0.2, 1], atol=1e-6)


def test_terminals_within_a_compact_trajectory_are_named(tmp_path: Path) -> None:
    arrays = {
        "observations": np.arange(6.0)[:, None],
        "actions": np.linspace(-1, 1, 6)[:, None],
        "rewards": np.arange(6.0),
        "masks": np.ones(6),
        "terminals": [0, 1, 0, 0, 1, 1],
        "valids": [1, 1, 1, 1, 1, 0],
    }
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.warns(UserWarning, match="1 terminals lie within trajectories"):
        load_dataset(str(tmp_path / "a.npz"), **UNIT)


# -- columns that are no plain numbers


@pytest.mark.parametrize("column", ["observations", "actions", "rewards", "terminations"])
def test_masked_values_are_refused_by_the_name_of_their_column(column: str) -> None:
    values = np.ma.array(rows()[column])
    assert load(rows(**{column: values})).spec == load(rows()).spec  # nothing is masked
    values[3] = np.ma.masked
    with pytest.raises(ValueError, match=f"expected {column} without gaps.*with 1 masked values"):
        load(rows(**{column: values}))


def test_objects_are_refused_by_the_name_of_their_column(tmp_path: Path) -> None:
    objects = np.array([float(i) for i in range(9)] + [None], dtype=object)
    with pytest.raises(TypeError, match=r"rewards .*got objects \(NoneType, float\)"):
        load(rows(rewards=objects))
    nested = {"a": rows()["observations"], "b": np.array([{}] * 10)}
    with pytest.raises(TypeError, match=r"observations\['b'\] .*got objects \(dict\)"):
        load(rows(observations=nested))
    np.savez(tmp_path / "a.npz", **rows(rewards=objects))
    with pytest.raises(TypeError, match=r"a\.npz: expected rewards .*pickled in the file"):
        load(str(tmp_path / "a.npz"))


def test_bfloat16_is_read_and_sparse_tensors_are_named() -> None:
    rewards = torch.tensor(REWARD, dtype=torch.bfloat16)  # small integers are exact in it
    assert load(rows(rewards=rewards)).spec == load(rows()).spec
    with pytest.raises(TypeError, match=r"rewards to be a plain tensor.*rewards\.to_dense"):
        load(rows(rewards=torch.tensor(REWARD).to_sparse()))
    with pytest.raises(TypeError, match="rewards to be a plain tensor"):
        load(rows(rewards=torch.zeros(10, device="meta")))


def test_vectors_of_bytes_are_no_images() -> None:
    ram = np.zeros((10, 128), np.uint8)
    with pytest.raises(ValueError, match=r"observations\['ram'\] is uint8 of shape \(128,\)"):
        load(rows(observations={"ram": ram}))
    with pytest.raises(ValueError, match="image observations are not supported yet"):
        load(rows(observations=np.zeros((10, 8, 8), np.uint8)))
