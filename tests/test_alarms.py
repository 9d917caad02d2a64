"""The formulas of the alarms: by hand, in closed form, and against a search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from oracles import VP, GaussianData
from torch import Tensor

from ddice.core.ranks import rank_correlation, ranks
from ddice.data import Transitions
from ddice.data.loading import load_dataset
from ddice.diffusion.schedule import VariancePreserving
from ddice.runs.alarms.critic import agreement, best_above, share_above, share_at_edge
from ddice.runs.alarms.errors import denoising_error, td_error
from ddice.runs.alarms.values import Observed, bias, correlation

pytestmark = pytest.mark.oracle


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- ranks


def test_ties_share_their_mean_rank() -> None:
    found = ranks(torch.tensor([[3.0, 1.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0]]))
    assert found.tolist() == [[3.0, 0.5, 0.5, 2.0], [1.5, 1.5, 1.5, 1.5]]


def test_rank_correlation_of_each_row_by_hand() -> None:
    """1 - 6 sum d^2 / (n (n^2 - 1)): the same order 1, turned round -1, (0 1 2 3) beside (1 0 2
    3) 1 - 12 / 60; beside a constant, none.
    """
    first = torch.tensor([[0.1, 0.5, 0.7, 9.0]]).expand(4, -1)
    second = torch.tensor(
        [[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], [2.0, 1.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]]
    )
    found = rank_correlation(first, second)
    assert found[:3].tolist() == pytest.approx([1, -1, 0.8])
    assert found[3].isnan()


# -- what a critic says of actions


def test_how_far_the_best_stands_above_the_data_by_hand() -> None:
    """3 - 1 and 2 - 2, mean 1; the scores 1 and 2 of the data have a deviation of 1/2."""
    candidates, data = torch.tensor([[1.0, 3.0], [0.0, 2.0]]), torch.tensor([1.0, 2.0])
    assert best_above(candidates, data).item() == pytest.approx(2)
    assert best_above(10 * candidates + 7, 10 * data + 7).item() == pytest.approx(2)
    assert share_above(candidates, data).item() == 0.5  # a tie is not above
    assert best_above(candidates, torch.ones(2)).isnan()


def test_scores_that_know_nothing_of_actions_beat_the_data_in_n_of_n_plus_1_states() -> None:
    """With standard normal scores the best of 3 stands 3 / (2 sqrt(pi)) above: its expectation."""
    candidates, data = numbers(0, 200_000, 3), numbers(1, 200_000)
    assert share_above(candidates, data).item() == pytest.approx(3 / 4, abs=5e-3)
    assert best_above(candidates, data).item() == pytest.approx(1.5 / np.pi**0.5, abs=1e-2)


def test_agreement_by_hand() -> None:
    """Two members that agree and one that turns all round: 1, -1 and -1, in each state."""
    same, turned = [0.0, 1.0, 2.0], [2.0, 1.0, 0.0]
    scores = torch.tensor([[same], [same], [turned]])
    assert agreement(scores).item() == pytest.approx(-1 / 3)
    assert agreement(scores[:2]).item() == pytest.approx(1)
    assert agreement(scores[1:]).item() == pytest.approx(-1)
    # of a state in which one says nothing, nothing is known
    silent = torch.cat([scores[:2], torch.tensor([[[4.0, 4.0, 4.0]], [same]])], 1)[:2]
    assert agreement(silent).item() == pytest.approx(1)
    assert agreement(torch.ones(2, 5, 3)).isnan()
    assert agreement(scores[:1]).isnan()


def test_agreement_is_the_mean_over_all_pairs_of_members() -> None:
    scores = numbers(2, 5, 40, 7).round(decimals=1)  # with ties
    pairs = [rank_correlation(*pair).mean() for pair in itertools.combinations(scores, 2)]
    assert agreement(scores).item() == pytest.approx(float(torch.stack(pairs).mean()))


def test_members_that_share_half_of_their_variance_agree_by_half() -> None:
    """Scores T + e_m with var T = var e correlate by 1/2, in ranks of many normal candidates 6/pi
    asin(1/4).
    """
    scores = numbers(3, 1, 400, 200) + numbers(4, 2, 400, 200)
    assert agreement(scores).item() == pytest.approx(6 / np.pi * np.arcsin(0.25), abs=5e-3)


def test_share_at_the_edge_counts_coordinates() -> None:
    assert share_at_edge(torch.tensor([[1.0, -0.995], [0.98, 0.0]])).item() == 0.5


# -- V beside returns


def test_correlation_and_bias_by_hand() -> None:
    """Deviations (-1, 0, 1) and (-1, 1, 0): 1/2. Means 5 and 2, and a deviation of sqrt(2/3)."""
    returns, values = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 6.0, 5.0])
    assert correlation(values, returns).item() == pytest.approx(0.5)
    assert bias(values, returns).item() == pytest.approx(3 * 1.5**0.5)
    assert bias(values, torch.ones(3)).isnan()
    assert correlation(values, torch.ones(3)).isnan()


class Source:
    """V(s) = 10 s, two members Q = s + a and s + 3 a, rewards doubled."""

    def value(self, observations: Tensor) -> Tensor:
        return 10 * observations[..., 0]

    def q(self, observations: Tensor, actions: Tensor) -> Tensor:
        s, a = observations[..., 0], actions[..., 0]
        return torch.stack([s + a, s + 3 * a])

    def rewards(self, rewards: Tensor) -> Tensor:
        return 2 * rewards


@pytest.fixture(scope="module")
def two_episodes(tmp_path_factory: pytest.TempPathFactory) -> Transitions:
    """States 1, 2, 3 with rewards 1, 2, 3 and a termination; then 5, 6 with rewards 1, 1 and a cut,
    after which came 7.
    """
    path = tmp_path_factory.mktemp("data") / "two.npz"
    np.savez(
        path,
        observations=np.array([[1], [2], [3], [5], [6]], np.float32),
        next_observations=np.array([[2], [3], [4], [6], [7]], np.float32),
        actions=np.array([[0.0], [0.5], [1.0], [0.0], [-1.0]], np.float32),
        rewards=np.array([1, 2, 3, 1, 1], np.float32),
        terminations=np.array([0, 0, 1, 0, 0], bool),
        truncations=np.array([0, 0, 0, 0, 1], bool),
    )
    return load_dataset(path, action_bounds=(-1, 1))


def test_returns_are_completed_where_an_episode_was_cut(two_episodes: Transitions) -> None:
    """Rewards count twice, discount 1/2: 2 + 2 + 6/4 and 6 to the termination; 2 + 1 + V(7) / 4 and
    2 + V(7) / 2 to the cut.
    """
    source, index = Source(), torch.tensor([4, 0, 2, 3])
    observed = Observed.of(two_episodes, index, source, 0.5)
    assert observed.returns.tolist() == [2, 5.5, 6, 3]
    assert observed.completed(source).tolist() == [2 + 35, 5.5, 6, 3 + 17.5]


def test_td_error_by_hand(two_episodes: Transitions) -> None:
    """Targets 2 r + V(s') / 2 of the first, second and fourth row: 12, 19 and 32; members 1, 2.5, 5
    and 1, 3.5, 5. Of the last: 37 beside 5 and 3. The row that terminates does not count.
    """
    every = two_episodes.at(torch.arange(5))
    errors = [(12 - 1), (19 - 2.5), (32 - 5), (37 - 5), (12 - 1), (19 - 3.5), (32 - 5), (37 - 3)]
    assert td_error(Source(), 0.5, every).item() == pytest.approx(sum(errors) / 8)


def test_at_gives_the_rows_that_it_is_asked_for(two_episodes: Transitions) -> None:
    batch = two_episodes.at(torch.tensor([3, 1]))
    assert batch.observations.tolist() == [[5], [2]]
    assert batch.rows.tolist() == [3, 1]
    assert batch.terminations.tolist() == [False, False]


# -- denoising


class GaussianPrior:
    """Knows the actions N(mean, std^2) exactly, whatever the state."""

    class config:
        schedule = VariancePreserving()

    def __init__(self, exact: GaussianData):
        self.exact = exact

    def encoder(self, observations: Tensor) -> Tensor:
        return observations

    def denoiser(self, features: Tensor) -> object:
        return self.exact.noise_prediction


def test_denoising_error_of_the_exact_model_in_closed_form() -> None:
    """Var(noise | a_t) = (alpha std)^2 / ((alpha std)^2 + sigma^2) in each of two dimensions."""
    exact = GaussianData(mean=0.3, std=0.5)
    times = torch.tensor([0.05, 0.3, 0.7])
    shape = (len(times), 100_000, 2)
    actions = exact.mean + exact.std * numbers(5, *shape)
    found = denoising_error(
        GaussianPrior(exact),
        torch.zeros(shape),
        actions,
        times,
        numbers(6, *shape),
        torch.ones(shape[:2]),
    )
    schedule = VP()
    variances = [
        (schedule.alpha(t) * exact.std) ** 2 / exact.deviation(t) ** 2 for t in times.tolist()
    ]
    assert found.item() == pytest.approx(2 * sum(variances) / 3, rel=5e-3)
