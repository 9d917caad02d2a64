"""Watchers that compute the alarms while a stage trains: few rows, always the same, and rarely."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ddice.core.randomness import rand, randn
from ddice.data import Batch, Transitions
from ddice.dice_backends.base import Backend
from ddice.dice_backends.semi_gradient import PairBackend
from ddice.diffusion.prior import Prior
from ddice.diffusion.samplers import Diffusion, DiffusionSampler
from ddice.diffusion.solvers import FEW_STEPS
from ddice.parts.ratio_source import RatioSource
from ddice.parts.watcher import Watcher
from ddice.runs.alarms.critic import agreement, best_above, share_above, share_at_edge
from ddice.runs.alarms.errors import denoising_error, td_error
from ddice.runs.alarms.looked import SEED, STATES, Looked, some_rows
from ddice.runs.alarms.values import Observed, bias, correlation

# A look takes as long as five to seven steps: 25 are less than 1 % of 20,000.
LOOKS = 25
# Steps between two looks at least, as many as between two lines of metrics.
SHORTEST = 100
# Actions in each state that a critic ranks: as many as selection usually has candidates.
ACTIONS = 8
# Noise levels of the denoising error, each with 32 of the states.
TIMES = 16


def known(numbers: Mapping[str, Tensor]) -> dict[str, float]:
    """Without those that are not defined on these rows, such as a correlation with a constant."""
    found = {name: float(number) for name, number in numbers.items()}
    return {name: number for name, number in found.items() if math.isfinite(number)}


@dataclass(frozen=True)
class PriorWatcher:
    """The denoising error of a prior on rows that it trains on, and on as many held-out ones."""

    prior: Prior
    data: Looked
    every: int

    name = "alarms"

    @property
    def identity(self) -> str:
        return self.data.identity

    @cached_property
    def _times(self) -> Tensor:  # (TIMES,)
        # The middles of as many equal parts: the mean over all times with little noise.
        uniform = (torch.arange(TIMES, dtype=torch.float32, device=self.prior.device) + 0.5) / TIMES
        return self.prior.config.schedule.training_times(uniform)

    @cached_property
    def _noise(self) -> Tensor:  # (TIMES, STATES / TIMES, A)
        shape = (TIMES, STATES // TIMES, self.data.training.spec.actions.size)
        return randn(SEED, "alarms/noise", 0, shape, self.data.training.device)

    def _error(self, data: Transitions) -> Tensor:
        batch = data.at(some_rows(data))
        observations, actions, weights = (
            part.unflatten(0, (TIMES, -1))
            for part in (batch.observations, batch.actions, batch.weights)
        )
        return denoising_error(self.prior, observations, actions, self._times, self._noise, weights)

    def look(self, step: int) -> Mapping[str, float]:
        numbers = {"denoising_error": self._error(self.data.training)}
        if self.data.held_out is not None:
            numbers["denoising_error_held_out"] = self._error(self.data.held_out)
        return known(numbers)


@dataclass(frozen=True)
class BackendWatcher:
    """V beside observed returns, Q of uniform actions beside Q of the data's, and the TD error, on
    held-out rows where there are any.
    """

    backend: RatioSource
    data: Looked
    every: int

    name = "alarms"

    @property
    def identity(self) -> str:
        return self.data.identity

    @cached_property
    def _looked_at(self) -> Batch:
        return self.data.unseen.at(some_rows(self.data.unseen))

    @cached_property
    def _uniform(self) -> Tensor:  # (STATES, ACTIONS, A)
        shape = (STATES, ACTIONS, self.data.training.spec.actions.size)
        return 2 * rand(SEED, "alarms/actions", 0, shape, self.data.training.device) - 1

    @cached_property
    def _observed(self) -> Observed | None:
        """None where values are no returns, or there is none to be observed."""
        data, discount = self.data.unseen, self.backend.discount
        returns = not isinstance(self.backend, Backend) or self.backend.values_are_returns
        if data.episode is None or discount is None or not self.backend.has_value or not returns:
            return None
        return Observed.of(data, some_rows(data), self.backend, discount)

    def look(self, step: int) -> Mapping[str, float]:
        return known({**self._above(), **self._values(), **self._errors()})

    def _above(self) -> dict[str, Tensor]:
        if not self.backend.has_q:
            return {}
        of_data = member_scores(self.backend, self._looked_at)
        of_uniform = candidate_scores(self.backend, self._looked_at, self._uniform)
        best = of_uniform.mean(0), of_data.mean(0)
        return {
            "uniform_above_data": best_above(*best),
            "uniform_above_data_share": share_above(*best),
        }

    def _values(self) -> dict[str, Tensor]:
        if self._observed is None:
            return {}
        values = self.backend.value(self._looked_at.observations)
        returns = self._observed.completed(self.backend)
        return {
            "value_correlation": correlation(values, returns),
            "value_bias": bias(values, returns),
        }

    def _errors(self) -> dict[str, Tensor]:
        backend, discount = self.backend, self.backend.discount
        if not (backend.has_q and backend.has_value) or discount is None:
            return {}
        trained = self.data.training.at(some_rows(self.data.training))
        numbers = {"td_error": td_error(backend, discount, trained)}
        if self.data.held_out is not None:
            numbers["td_error_held_out"] = td_error(backend, discount, self._looked_at)
        return numbers


@dataclass(frozen=True)
class CandidatesWatcher:
    """What a critic makes of candidates of the prior: which it would choose by the mean over its
    members, and whether these agree.
    """

    backend: RatioSource
    prior: Prior
    data: Looked
    every: int

    name = "candidates"

    @property
    def identity(self) -> str:
        prior = self.prior.identity(self.data.training)
        return f"{prior}@{self.prior.step}/{self.data.identity}"

    @cached_property
    def _looked_at(self) -> Batch:
        return self.data.unseen.at(some_rows(self.data.unseen))

    @cached_property
    def _candidates(self) -> Tensor:  # (STATES, ACTIONS, A)
        """Made once, because the prior is trained by now."""
        settings = Diffusion(prior=self.prior.config, solver=FEW_STEPS)
        sampler = DiffusionSampler(settings, self.prior.encoder, self.prior.averaged, None)
        shape = (STATES, ACTIONS, self.data.training.spec.actions.size)
        noise = randn(SEED, "alarms/candidates", 0, shape, self.data.training.device)
        made: Tensor = sampler(self._looked_at.observations, noise)
        return made.clamp(-1, 1)

    def look(self, step: int) -> Mapping[str, float]:
        if not self.backend.has_q:
            return {}
        members = candidate_scores(self.backend, self._looked_at, self._candidates)
        of_data, scores = member_scores(self.backend, self._looked_at).mean(0), members.mean(0)
        off = {"value_error": self._value_error()} if isinstance(self.backend, PairBackend) else {}
        chosen = scores.argmax(-1)[:, None, None]  # (B, 1, 1), which take_along_dim broadcasts
        choices = self._candidates.take_along_dim(chosen, 1)
        return known(
            {
                "prior_above_data": best_above(scores, of_data),
                "prior_above_data_share": share_above(scores, of_data),
                "member_agreement": agreement(members),
                "choices_at_edge": share_at_edge(choices),
                "candidates_at_edge": share_at_edge(self._candidates),
                **off,
            }
        )

    def _value_error(self) -> Tensor:
        """How far V is from where the ratios of a state average what they should, over states: root
        mean square, in temperatures.
        """
        backend, batch = self.backend, self._looked_at
        assert isinstance(backend, PairBackend)
        # The data's own action is one more of the behaviour policy.
        actions = torch.cat([batch.actions[:, None], self._candidates], 1)
        states = batch.observations.repeat_interleave(actions.shape[1], 0)
        q = backend.reduced_q(states, actions.flatten(0, 1)).view(actions.shape[:2])
        exact = backend.balancing_values(q, backend.temperature)
        off: Tensor = (backend.value(batch.observations) - exact) / backend.temperature
        return off.square().mean().sqrt()


def alarms(
    stage: str,
    steps: int,
    data: Looked,
    prior: Prior | None,
    backend: RatioSource | None,
) -> tuple[Watcher, ...]:
    """Who looks at a stage of `steps` steps: at the prior in its own, at the backend where it is
    trained.
    """
    pace = max(SHORTEST, math.ceil(steps / LOOKS))
    if stage == "prior" and prior is not None:
        return (PriorWatcher(prior, data, pace),)
    if stage not in ("backend", "joint") or backend is None:
        return ()
    of_backend = BackendWatcher(backend, data, pace)
    if prior is None:
        return (of_backend,)
    return of_backend, CandidatesWatcher(backend, prior, data, pace)


def member_scores(backend: RatioSource, batch: Batch) -> Tensor:  # (M, B)
    """Q of the data's actions."""
    assert backend.q is not None
    scores: Tensor = backend.q(batch.observations, batch.actions)
    return scores


def candidate_scores(
    backend: RatioSource,
    batch: Batch,
    actions: Tensor,  # (B, N, A)
) -> Tensor:  # (M, B, N)
    """Q of other actions in the same states."""
    assert backend.q is not None
    count = actions.shape[1]
    states = batch.observations.repeat_interleave(count, 0)
    scores: Tensor = backend.q(states, actions.flatten(0, 1))
    return scores.view(len(scores), -1, count)
