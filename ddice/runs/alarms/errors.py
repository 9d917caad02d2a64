"""Errors that can be taken on rows that were trained on and on rows that were held out."""

from __future__ import annotations

import torch
from torch import Tensor

from ddice.data import Batch
from ddice.diffusion.prior import denoising_loss
from ddice.diffusion.trained_prior import TrainedPrior
from ddice.parts.part import weighted_mean
from ddice.parts.ratio_source import RatioSource


def td_error(
    source: RatioSource,
    discount: float,
    batch: Batch,
) -> Tensor:  # ()
    """E |Q_m(s, a) - (r + discount V(s'))|, averaged over members, in the units of the backend's
    rewards.

    Rows that terminate are left out: what follows them is the backend's own matter, nothing or an
    absorbing state.
    """
    assert source.q is not None
    targets = source.rewards(batch.rewards) + discount * source.value(batch.next_observations)
    errors = source.q(batch.observations, batch.actions) - targets  # (M, B)
    weights = torch.where(batch.terminations, 0.0, batch.weights)
    return weighted_mean(errors.abs(), weights).mean()


def denoising_error(
    prior: TrainedPrior,
    observations: Tensor,  # (T, B, S)
    actions: Tensor,  # (T, B, A)
    times: Tensor,  # (T,)
    noise: Tensor,  # (T, B, A)
    weights: Tensor,  # (T, B)
) -> Tensor:  # ()
    """E |noise - denoiser(a_t, t)|^2 of the averaged network: B rows at each of T times. With times
    and noise that stay, it changes with the network alone, and its curve is smooth.
    """
    schedule = prior.config.schedule
    losses = []
    for state, action, t, drawn, weight in zip(
        observations, actions, times, noise, weights, strict=True
    ):
        denoise = prior.denoiser(prior.encoder(state))
        predicted = denoise(schedule.noise(action, t, drawn), t)
        losses.append(denoising_loss(predicted, drawn, weight))
    return torch.stack(losses).mean()
